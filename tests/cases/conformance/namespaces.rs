//! Namespaces: new ones, the runtime's own, and those that are none.

use harness::{Bundle, Runtime};
use serde_json::{Value, json};

use super::{refused, run};

/// The kinds and the inodes that a kernel gives to its first ones; that of network namespaces differs.
const FIRST: [(&str, &str); 6] = [
    ("ipc", "ipc:[4026531839]"),
    ("uts", "uts:[4026531838]"),
    ("user", "user:[4026531837]"),
    ("pid", "pid:[4026531836]"),
    ("cgroup", "cgroup:[4026531835]"),
    ("time", "time:[4026531834]"),
];

/// Whether each kind is the runtime's own: for husk, the guest's.
fn is_runtimes(bundle: &Bundle) -> Vec<(&'static str, bool)> {
    let output = run(bundle);
    output.assert_status(0);
    let text = output.text();
    let inodes = text.lines().zip(FIRST);
    inodes
        .map(|(inode, (kind, first))| {
            let own = std::fs::read_link(format!("/proc/self/ns/{kind}")).unwrap();
            let own = if Runtime::is_husk() {
                first
            } else {
                own.to_str().unwrap()
            };
            (kind, inode == own)
        })
        .collect()
}

fn showing() -> Bundle {
    Bundle::busybox()
        .shell("cd /proc/self/ns; for k in ipc uts user pid cgroup time; do readlink $k; done")
}

#[test]
fn those_that_are_listed_are_new_and_the_others_the_runtimes() {
    // runc's configuration has it on hosts of version 2 only.
    let bundle = showing()
        .without_namespace("cgroup")
        .namespace(json!({"type": "cgroup"}));
    let expected = [
        ("ipc", false),
        ("uts", false),
        ("user", true),
        ("pid", false),
        ("cgroup", false),
        ("time", true),
    ];
    assert_eq!(is_runtimes(&bundle), expected);
    let mut bundle = showing()
        .without_namespace("ipc")
        .without_namespace("uts")
        .without_namespace("cgroup");
    bundle.config.as_object_mut().unwrap().remove("hostname");
    let expected = [
        ("ipc", true),
        ("uts", true),
        ("user", true),
        ("pid", false),
        ("cgroup", true),
        ("time", true),
    ];
    assert_eq!(is_runtimes(&bundle), expected);
}

fn with(namespace: Value) -> Bundle {
    Bundle::busybox().namespace(namespace)
}

#[test]
fn those_that_are_none_are_refused() {
    refused(&with(json!({"type": "uts"})), "a kind given twice");
    refused(&with(json!({"type": "husk"})), "an unknown kind");
    let path = |kind: &str, path: &str| {
        Bundle::busybox()
            .without_namespace(kind)
            .namespace(json!({"type": kind, "path": path}))
    };
    for kind in ["ipc", "network"] {
        refused(&path(kind, "/proc/self/ns/uts"), "one of another kind");
        refused(&path(kind, "/etc/passwd"), "a file that is none");
        refused(&path(kind, "/not/there"), "one that is not there");
        refused(&path(kind, "proc/self/ns/net"), "a relative path");
    }
}

#[test]
fn a_host_name_needs_a_namespace_for_it() {
    refused(
        &Bundle::busybox()
            .without_namespace("uts")
            .with("/hostname", json!("elsewhere")),
        "a host name for the runtime's own namespace",
    );
}

#[test]
fn a_user_namespace_needs_maps() {
    refused(
        &with(json!({"type": "user"})),
        "a user namespace without maps",
    );
}
