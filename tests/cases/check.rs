//! `check` says whether this host is fit.

use harness::{Runtime, only_husk};

#[test]
fn a_fit_host_passes() {
    only_husk("runc has no such verb");
    let output = Runtime::from_environment().call(&["check"]);
    output.assert_status(0);
    for part in ["kvm", "kernel", "initrd", "instructions"] {
        output.assert_prints_part(part);
    }
}

#[test]
fn a_script_can_read_it() {
    only_husk("runc has no such verb");
    let output = Runtime::from_environment().call(&["check", "--json"]);
    output.assert_status(0);
    let answer: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(answer.is_object(), "{answer}");
}

#[test]
fn a_missing_kernel_is_found() {
    only_husk("runc has no such verb");
    let runtime = Runtime::from_environment().configured("kernel = \"/not/there\"\n");
    let output = runtime.call(&["check"]);
    assert_ne!(output.status, 0);
    assert!(output.text().contains("/not/there"), "{output:?}");
}
