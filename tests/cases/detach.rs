//! Containers and execs in the background: a process of the host stands for each, for whoever adopts it.

use std::fs;

use harness::{Bundle, Engine, Remains, Runtime, only_husk};
use rustix::process::Signal;

const LOOP: &str = "trap 'echo bye; exit 5' TERM; echo up; while :; do sleep 0.1; done";

#[test]
fn the_process_of_a_container_ends_with_its_status_after_its_output() {
    let before = Remains::seen();
    let engine = Engine::of(Bundle::busybox().shell("head -c 3000000 /dev/zero; exit 7"));
    let process = engine.make(&["create"], &[]);
    let state = engine.state();
    assert_eq!(
        (&state["status"], &state["pid"]),
        (&"created".into(), &process.pid().into())
    );
    engine.start();
    assert_eq!(process.wait(), 7);
    assert_eq!(
        fs::metadata(engine.path("stdout")).unwrap().len(),
        3_000_000
    );
    let state = engine.state();
    assert_eq!(
        (&state["status"], &state["pid"]),
        (&"stopped".into(), &0.into())
    );
    engine.call(&["kill"]).assert_refused(&["not running"]);
    engine.call(&["delete"]).assert_status(0);
    before.assert_nothing_new(&engine.id, &engine.runtime.root());
}

#[test]
fn a_detached_run_is_started_when_it_returns() {
    let engine = Engine::of(Bundle::busybox().shell(LOOP));
    let process = engine.make(&["run", "--detach"], &[]);
    assert_eq!(engine.state()["status"], "running");
    engine.await_output("up\n");
    engine.call(&["delete"]).assert_refused(&["running"]);
    engine.call(&["kill"]).assert_status(0);
    assert_eq!(process.wait(), 5);
    assert_eq!(engine.output(), "up\nbye\n");
}

#[test]
fn deletion_by_force_ends_and_removes() {
    let before = Remains::seen();
    let engine = Engine::of(Bundle::busybox().shell(LOOP));
    let process = engine.make(&["run", "-d"], &[]);
    engine.call(&["delete", "--force"]).assert_status(0);
    assert_eq!(process.wait(), 137);
    before.assert_nothing_new(&engine.id, &engine.runtime.root());
    engine.call(&["delete", "--force"]).assert_status(0);
    engine.call(&["delete"]).assert_refused(&["does not exist"]);
}

#[test]
fn a_created_container_can_be_deleted() {
    let before = Remains::seen();
    let engine = Engine::of(Bundle::busybox());
    let process = engine.make(&["create"], &[]);
    engine.call(&["delete"]).assert_status(0);
    assert_eq!(process.wait(), 137);
    before.assert_nothing_new(&engine.id, &engine.runtime.root());
}

#[test]
fn a_kept_run_leaves_its_state() {
    let engine = Engine::of(Bundle::busybox().shell("exit 3"));
    let pid_file = engine.path("pid");
    let bundle = ["--bundle", engine.bundle().path().to_str().unwrap()];
    let words = [
        &["run", "--keep", "--pid-file", pid_file.to_str().unwrap()],
        &bundle[..],
    ]
    .concat();
    engine.call(&words).assert_status(3);
    assert_eq!(engine.state()["status"], "stopped");
    engine.call(&["delete"]).assert_status(0);
}

#[test]
fn an_exec_in_the_background_has_a_process_with_its_status() {
    let engine = Engine::of(Bundle::busybox().shell(LOOP));
    let process = engine.make(&["run", "--detach"], &[]);
    let exec = engine.exec(&[], &["sh", "-c", "echo from exec; exit 3"]);
    assert_eq!(exec.wait(), 3);
    assert!(
        engine.output().contains("from exec\n"),
        "{}",
        engine.output()
    );
    let exec = engine.exec(&[], &["sleep", "1000"]);
    exec.signal(Signal::TERM);
    assert_eq!(exec.wait(), 143);
    let words = ["exec", "--detach", &engine.id, "nonesuch"];
    // As of a shell; runc has one status for all that fails.
    let missing = if Runtime::is_husk() { 127 } else { 255 };
    let status = engine.command(&words).status().unwrap();
    assert_eq!(status.code(), Some(missing));
    engine.call(&["kill"]).assert_status(0);
    assert_eq!(process.wait(), 5);
}

#[test]
fn an_exec_ends_with_its_container() {
    let engine = Engine::of(Bundle::busybox().shell(LOOP));
    let process = engine.make(&["run", "--detach"], &[]);
    let exec = engine.exec(&[], &["sh", "-c", "echo waits; sleep 1000"]);
    // Before its trap is set the first process would not get the signal.
    engine.await_output("up\n");
    engine.await_output("waits\n");
    engine.call(&["kill"]).assert_status(0);
    // A pid namespace that is not a guest's ends when all of its processes have been waited for.
    assert!(exec.wait() >= 128);
    assert_eq!(process.wait(), 5);
}

#[test]
fn descriptors_cannot_be_passed_on() {
    only_husk("runc passes descriptors on");
    let engine = Engine::of(Bundle::busybox());
    for verb in ["create", "run"] {
        let bundle = engine.bundle().path().to_str().unwrap().to_owned();
        engine
            .call(&[verb, "--preserve-fds", "1", "--bundle", &bundle])
            .assert_refused(&["--preserve-fds", "VM"]);
    }
}
