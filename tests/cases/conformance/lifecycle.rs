//! Operations and what they leave: the state, the configuration of the moment of creation, the bundle.

use std::fs;
use std::path::Path;

use harness::{Background, Bundle, Remains, Runtime};
use serde_json::{Value, json};

/// What must be in a state.
#[track_caller]
fn assert_state(state: &Value, container: &Background<'_>, bundle: &Path, status: &str) {
    let version = state["ociVersion"].as_str().unwrap();
    assert!(version.starts_with("1."), "{state}");
    assert_eq!(state["id"], container.id.as_str());
    assert_eq!(state["status"], status);
    assert_eq!(state["bundle"], bundle.to_str().unwrap());
    assert_eq!(state["annotations"]["org.example.key"], "value");
    if status != "stopped" {
        let pid = state["pid"].as_i64().unwrap();
        assert!(pid > 0, "{state}");
        let process = format!("/proc/{pid}");
        assert!(fs::exists(process).unwrap(), "{state}");
    }
}

#[test]
fn the_state_is_complete_in_every_status_and_delete_leaves_the_bundle() {
    let runtime = Runtime::from_environment();
    let bundle = Bundle::busybox()
        .args(&["sleep", "1000"])
        .with("/annotations", json!({"org.example.key": "value"}));
    let path = bundle.path().to_owned();
    let container = Background::created(&runtime, bundle);
    assert_state(&container.state(), &container, &path, "created");
    container.call(&["start"]).assert_status(0);
    assert_state(&container.state(), &container, &path, "running");
    container.kill("KILL").assert_status(0);
    container.until_stopped();
    assert_state(&container.state(), &container, &path, "stopped");
    container.call(&["delete"]).assert_status(0);
    assert_ne!(container.call(&["state"]).status, 0);
    assert!(path.join("config.json").exists());
    assert!(path.join("rootfs/bin/busybox").exists());
}

#[test]
fn the_program_runs_at_start_only_and_as_configured_at_create() {
    let runtime = Runtime::from_environment();
    let bundle = Bundle::busybox().shell("touch /ran; echo as created");
    let (configuration, ran) = (
        bundle.path().join("config.json"),
        bundle.rootfs().join("ran"),
    );
    let mut container = Background::created(&runtime, bundle);
    let text = fs::read_to_string(&configuration).unwrap();
    fs::write(&configuration, text.replace("as created", "as changed")).unwrap();
    assert!(!ran.exists());
    container.call(&["start"]).assert_status(0);
    container.wait_for("as created\n");
    container.until_stopped();
    assert!(ran.exists());
    container.remove();
}

#[test]
fn an_id_can_be_used_again_after_delete() {
    let runtime = Runtime::from_environment();
    let before = Remains::seen();
    let id = Runtime::new_id();
    for _ in 0..2 {
        let bundle = Bundle::busybox();
        let running = runtime.start_as(&bundle, &id, std::process::Stdio::null());
        running.wait().assert_status(0);
    }
    before.assert_nothing_new(&id, &runtime.root());
}

#[test]
fn a_signal_is_sent_to_the_process_in_the_container() {
    let runtime = Runtime::from_environment();
    let script = "trap 'echo got it' USR1; echo up; while :; do sleep 0.1; done";
    let mut container = Background::started(&runtime, Bundle::busybox().shell(script));
    container.wait_for("up\n");
    container.kill("USR1").assert_status(0);
    container.wait_for("got it\n");
    assert_eq!(container.status(), "running");
    container.remove();
}

#[test]
fn operations_without_an_id_or_a_bundle_are_errors() {
    let runtime = Runtime::from_environment();
    for verb in ["state", "create", "start", "kill", "delete"] {
        assert_ne!(runtime.call(&[verb]).status, 0, "{verb}");
    }
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().to_str().unwrap();
    let output = runtime.call(&["create", "--bundle", path, "x"]);
    assert_ne!(output.status, 0);
    assert_ne!(runtime.call(&["state", "x"]).status, 0);
}
