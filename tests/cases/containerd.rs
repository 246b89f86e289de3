//! containerd, through its shim for runc, finds what it expects of a runtime.

use harness::{Containerd, Remains, Runtime, wait};

#[test]
fn status_and_outputs_are_the_containers() {
    let containerd = Containerd::with_busybox();
    let id = Runtime::new_id();
    let before = Remains::seen();
    let script = "echo out; echo err >&2; exit 7";
    let output = containerd.run(&["--rm"], &id, &["sh", "-c", script]);
    output.assert_status(7);
    assert_eq!(
        (output.text(), output.errors()),
        ("out\n".into(), "err\n".into())
    );
    before.assert_nothing_new(&id, &containerd.runtime_root());
}

#[test]
fn an_exec_has_status_and_output_of_its_own() {
    let containerd = Containerd::with_busybox();
    let id = Runtime::new_id();
    containerd
        .run(&["--detach"], &id, &["sleep", "1000"])
        .assert_status(0);
    let script = "echo in; exit 3";
    let exec = [
        "tasks",
        "exec",
        "--exec-id",
        "other",
        &id,
        "sh",
        "-c",
        script,
    ];
    let output = containerd.call(&exec);
    output.assert_status(3);
    assert_eq!(output.text(), "in\n");
    end(&containerd, &id);
}

#[test]
fn a_killed_container_is_deleted_with_its_status() {
    let containerd = Containerd::with_busybox();
    let id = Runtime::new_id();
    let before = Remains::seen();
    let script = "trap 'exit 4' TERM; while :; do sleep 0.1; done";
    containerd
        .run(&["--detach"], &id, &["sh", "-c", script])
        .assert_status(0);
    assert!(containerd.runtime_root().join(&id).exists());
    containerd
        .call(&["tasks", "kill", "--signal", "TERM", &id])
        .assert_status(0);
    await_end(&containerd, &id);
    let deleted = containerd.call(&["tasks", "delete", &id]);
    deleted.assert_status(0);
    assert!(deleted.errors().contains("exit code 4"), "{deleted:?}");
    containerd
        .call(&["containers", "delete", &id])
        .assert_status(0);
    before.assert_nothing_new(&id, &containerd.runtime_root());
}

/// A container that is not ended would outlive its daemon.
fn end(containerd: &Containerd, id: &str) {
    containerd
        .call(&["tasks", "delete", "--force", id])
        .assert_status(0);
    containerd
        .call(&["containers", "delete", id])
        .assert_status(0);
}

fn await_end(containerd: &Containerd, id: &str) {
    wait::until("stopped", || {
        let tasks = containerd.call(&["tasks", "list"]).text();
        let mut lines = tasks.lines();
        lines.any(|line| line.starts_with(id) && line.ends_with("STOPPED"))
    });
}
