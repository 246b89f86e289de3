//! A call in the wrong state fails, in the words that scripts know, and changes nothing.

use harness::{Background, Bundle, Runtime, only_husk};

#[track_caller]
fn refused(container: &Background<'_>, words: &[&str], part: &str) {
    let before = container.status();
    let output = container.call(words);
    assert_ne!(output.status, 0, "{words:?}");
    let errors = output.errors();
    assert!(
        errors.contains(part),
        "{words:?}: {part:?} is not in {errors:?}"
    );
    if Runtime::is_husk() {
        output.assert_refused(&[]);
    }
    assert_eq!(container.status(), before, "{words:?}");
}

fn sleeper() -> Bundle {
    Bundle::busybox().args(&["sleep", "1000"])
}

#[test]
fn created() {
    let runtime = Runtime::from_environment();
    let container = Background::created(&runtime, sleeper());
    assert_eq!(container.status(), "created");
    refused(&container, &["resume"], "container not paused");
    container.exec(&["echo", "early"]).assert_prints("early\n");
    assert_eq!(container.status(), "created");
    container.call(&["delete"]).assert_status(0);
}

#[test]
fn running() {
    let runtime = Runtime::from_environment();
    let container = Background::started(&runtime, sleeper());
    refused(&container, &["start"], "");
    refused(&container, &["resume"], "container not paused");
    refused(&container, &["delete"], "");
    container.remove();
}

#[test]
fn paused() {
    let runtime = Runtime::from_environment();
    let container = Background::started(&runtime, sleeper());
    container.call(&["pause"]).assert_status(0);
    refused(&container, &["pause"], "container not running");
    refused(&container, &["start"], "");
    refused(&container, &["delete"], "");
    // The runtime's own failure, which no command's exit status is taken for.
    container.exec(&["true"]).assert_status(255);
    container.remove();
}

#[test]
fn stopped() {
    let runtime = Runtime::from_environment();
    let container = Background::started(&runtime, Bundle::busybox());
    container.until_stopped();
    refused(&container, &["kill"], "container not running");
    refused(&container, &["pause"], "container not running");
    refused(&container, &["resume"], "container not paused");
    refused(
        &container,
        &["update", "--pids-limit", "5"],
        "container not running",
    );
    refused(&container, &["events", "--stats"], "is not running");
    refused(&container, &["start"], "");
    assert_ne!(container.exec(&["true"]).status, 0);
    container.call(&["kill", "--all"]).assert_status(0);
    container.call(&["delete"]).assert_status(0);
}

#[test]
fn not_there() {
    let runtime = Runtime::from_environment();
    for words in [
        &["state"][..],
        &["start"],
        &["kill"],
        &["delete"],
        &["pause"],
        &["resume"],
        &["update", "--pids-limit", "5"],
        &["ps"],
        &["events", "--stats"],
    ] {
        let output = runtime.call(&[words, &["nobody"]].concat());
        assert_ne!(output.status, 0, "{words:?}");
        let errors = output.errors();
        assert!(errors.contains("does not exist"), "{words:?}: {errors:?}");
    }
    runtime
        .call(&["delete", "--force", "nobody"])
        .assert_status(0);
}

#[test]
fn checkpoints_are_refused() {
    only_husk("runc has checkpoints");
    let runtime = Runtime::from_environment();
    for words in [
        &["checkpoint", "--image-path", "/x", "web"][..],
        &["restore", "web"],
    ] {
        runtime.call(words).assert_refused(&["no checkpoint"]);
    }
}
