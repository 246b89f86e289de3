//! The root file system.

use std::fs;

use harness::Bundle;
use serde_json::json;

use super::{refused, run};

#[test]
fn its_path_may_be_absolute_and_it_is_writable_unless_told_otherwise() {
    let mut bundle = Bundle::busybox().shell("echo kept >/file");
    bundle.config["root"] = json!({"path": bundle.rootfs()});
    run(&bundle).assert_status(0);
    assert_eq!(fs::read(bundle.rootfs().join("file")).unwrap(), b"kept\n");
}

#[test]
fn a_root_that_is_no_directory_is_refused() {
    let bundle = Bundle::busybox().with("/root/path", json!("file"));
    fs::write(bundle.path().join("file"), "").unwrap();
    refused(&bundle, "a file as root");
}

#[test]
fn no_root_is_refused() {
    let mut bundle = Bundle::busybox();
    bundle.config.as_object_mut().unwrap().remove("root");
    refused(&bundle, "no root");
}
