//! Annotations, properties that nobody knows, and values that are none.

use harness::{Background, Bundle, Runtime, only_husk};
use serde_json::json;

use super::{refused, run};

#[test]
fn annotations_are_in_the_state_whatever_they_say() {
    let runtime = Runtime::from_environment();
    let annotations =
        json!({"org.example.unknown": "x", "empty": "", "org.opencontainers.image.os": "linux"});
    let bundle = Bundle::busybox().with("/annotations", annotations.clone());
    let container = Background::created(&runtime, bundle);
    assert_eq!(container.state()["annotations"], annotations);
    container.remove();
}

#[test]
fn unknown_properties_are_ignored() {
    let odd = json!({"of": ["husk"]});
    let mut bundle = Bundle::busybox().args(&["echo", "well"]);
    for parent in [
        "",
        "/process",
        "/process/user",
        "/process/capabilities",
        "/root",
        "/mounts/0",
        "/linux",
        "/linux/resources",
        "/linux/namespaces/0",
    ] {
        bundle = bundle.with(&format!("{parent}/xUnknown"), odd.clone());
    }
    run(&bundle).assert_prints("well\n");
}

#[test]
fn values_that_are_none_are_refused() {
    for (pointer, value) in [
        ("/annotations", json!({"key": 1})),
        ("/annotations", json!(["key"])),
        ("/process/user/uid", json!(-1)),
        ("/process/user/uid", json!("root")),
        ("/process/terminal", json!("no")),
        ("/process/args", json!("true")),
        ("/process/oomScoreAdj", json!(5000)),
        ("/root/readonly", json!("yes")),
        ("/mounts", json!({})),
        ("/linux/rootfsPropagation", json!("everywhere")),
        ("/linux/resources/pids", json!({"limit": "many"})),
    ] {
        refused(
            &Bundle::busybox().with(pointer, value.clone()),
            &format!("{pointer} = {value}"),
        );
    }
}

#[test]
fn an_empty_key_is_refused() {
    only_husk("runc does not look");
    let bundle = Bundle::busybox().with("/annotations", json!({"": "value"}));
    refused(&bundle, "an annotation without a key");
}
