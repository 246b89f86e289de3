//! A paused container stands still, can be killed, and goes on where it was.

use harness::{Background, Bundle, Runtime};
use serde_json::Value;

/// Busy, and answers a signal.
const SCRIPT: &str = "trap 'echo got it' USR1; echo up; while :; do :; done";

fn cpu_time(container: &Background<'_>) -> u64 {
    let output = container.call(&["events", "--stats"]);
    output.assert_status(0);
    let line: Value = serde_json::from_slice(&output.stdout).unwrap();
    line["data"]["cpu"]["usage"]["total"].as_u64().unwrap()
}

#[test]
fn it_uses_no_cpu_and_goes_on_afterwards() {
    let runtime = Runtime::from_environment();
    let mut container = Background::started(&runtime, Bundle::busybox().shell(SCRIPT));
    container.wait_for("up\n");
    container.call(&["pause"]).assert_prints("");
    assert_eq!(container.status(), "paused");
    let before = cpu_time(&container);
    assert_eq!(cpu_time(&container), before);
    container.kill("USR1").assert_status(0);
    assert_eq!(container.status(), "paused");
    container.call(&["resume"]).assert_prints("");
    assert_eq!(container.status(), "running");
    container.wait_for("got it\n");
    container.remove();
}

#[test]
fn it_can_be_killed() {
    let runtime = Runtime::from_environment();
    let mut container = Background::started(&runtime, Bundle::busybox().shell(SCRIPT));
    container.wait_for("up\n");
    container.call(&["pause"]).assert_status(0);
    container.kill("KILL").assert_status(0);
    container.until_stopped();
    container.call(&["delete"]).assert_status(0);
}

#[test]
fn it_can_be_removed_by_force() {
    let runtime = Runtime::from_environment();
    let mut container = Background::started(&runtime, Bundle::busybox().shell(SCRIPT));
    container.wait_for("up\n");
    container.call(&["pause"]).assert_status(0);
    container.remove();
}

#[test]
fn a_created_container_can_be_paused_and_started_after_it_is_resumed() {
    let runtime = Runtime::from_environment();
    let mut container = Background::created(&runtime, Bundle::busybox().shell("echo up"));
    container.call(&["pause"]).assert_status(0);
    assert_ne!(container.call(&["start"]).status, 0);
    assert_eq!(container.status(), "paused");
    container.call(&["resume"]).assert_status(0);
    assert_eq!(container.status(), "created");
    container.call(&["start"]).assert_status(0);
    container.wait_for("up\n");
    container.until_stopped();
    container.remove();
}
