//! A VM that does not come up, or goes away, is an error that says why.

use std::fs;

use harness::{Bundle, Remains, Runtime, initrd_with, only_husk};
use rustix::process::{Signal, kill_process};

#[test]
fn a_kernel_that_panics_shows_its_last_lines() {
    only_husk("runc has no VM");
    let directory = tempfile::tempdir().unwrap();
    let initrd = directory.path().join("initrd.cpio");
    initrd_with(b"not a program", &initrd);
    let runtime = Runtime::from_environment().configured(&format!("initrd = {initrd:?}\n"));
    let output = runtime.run(&Bundle::busybox());
    assert_eq!(output.status, 1, "{output:?}");
    assert!(output.errors().contains("Kernel panic"), "{output:?}");
}

#[test]
fn an_agent_that_never_answers_is_given_up() {
    only_husk("runc has no VM");
    let directory = tempfile::tempdir().unwrap();
    let initrd = directory.path().join("initrd.cpio");
    // The probe as /init sleeps for ever.
    initrd_with(&fs::read(env!("CARGO_BIN_EXE_probe")).unwrap(), &initrd);
    let runtime = Runtime::from_environment()
        .configured(&format!("initrd = {initrd:?}\nagent_timeout_s = 30\n"));
    let output = runtime.run(&Bundle::busybox());
    assert_eq!(output.status, 1, "{output:?}");
    let errors = output.errors();
    assert!(errors.contains("agent"), "{output:?}");
    assert!(errors.contains("last milestone is kernel"), "{output:?}");
    assert!(
        errors.contains("asleep"),
        "the guest's last lines are shown: {output:?}"
    );
}

#[test]
fn a_vm_that_is_killed_ends_its_container_with_137() {
    only_husk("runc has no VM");
    let runtime = Runtime::from_environment();
    let before = Remains::seen();
    let bundle = Bundle::busybox().shell("echo up; sleep 1000");
    let mut running = runtime.start(&bundle);
    let id = running.id.clone();
    running.wait_for("up\n");
    kill_process(runtime.process(&id, "vmm"), Signal::KILL).unwrap();
    running.wait().assert_status(137);
    before.assert_nothing_new(&id, &runtime.root());
}
