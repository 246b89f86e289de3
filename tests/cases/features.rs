//! What is honoured is said in the form that the specification defines.

use harness::{Bundle, Runtime, only_husk};
use serde_json::Value;

fn features() -> Value {
    let output = Runtime::from_environment().call(&["features"]);
    output.assert_status(0);
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn versions_and_lists_are_there() {
    let features = features();
    assert_eq!(features["ociVersionMin"], "1.0.0");
    for pointer in [
        "/hooks",
        "/mountOptions",
        "/linux/namespaces",
        "/linux/capabilities",
        "/linux/seccomp/actions",
    ] {
        let list = features.pointer(pointer).unwrap().as_array().unwrap();
        assert!(!list.is_empty(), "{pointer}");
    }
}

#[test]
fn every_mount_option_works() {
    only_husk("runc also names options that it gives to a file system, which knows them or not");
    let features = features();
    let mut bundle = Bundle::busybox();
    // What asks for another kind of mount, or for maps of ids.
    let special = [
        "remount", "idmap", "ridmap", "acl", "noacl", "iversion", "mand",
    ];
    for option in features["mountOptions"].as_array().unwrap() {
        let option = option.as_str().unwrap();
        if special.contains(&option) {
            continue;
        }
        let mount = match option {
            "bind" | "rbind" => serde_json::json!({
                "destination": format!("/mnt/{option}"), "type": "none", "source": "/etc", "options": [option],
            }),
            _ => serde_json::json!({
                "destination": format!("/mnt/{option}"), "type": "tmpfs", "source": "tmpfs", "options": [option],
            }),
        };
        bundle = bundle.mount(mount);
    }
    Runtime::from_environment().run(&bundle).assert_status(0);
}
