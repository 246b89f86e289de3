//! Whoever dies first: what is left can be looked at and removed, and nothing leaks.

use std::fs;
use std::path::Path;
use std::process::Child;

use harness::{Adopted, Bundle, Engine, Remains, Runtime, only_husk, wait};
use rustix::process::{Signal, kill_process};

fn engine() -> Engine {
    Engine::of(Bundle::busybox().shell("echo up; sleep 1000"))
}

/// What was there before, and a container that is up, with its process.
fn running() -> (Remains, Engine, Adopted) {
    let before = Remains::seen();
    let engine = engine();
    let process = engine.make(&["run", "--detach"], &[]);
    engine.await_output("up\n");
    (before, engine, process)
}

fn signal_vm(engine: &Engine, signal: Signal) {
    let vmm = engine.runtime.process(&engine.id, "vmm");
    kill_process(vmm, signal).unwrap();
}

/// Everything an engine does with a container that has died.
fn bury(engine: &Engine, process: Adopted, before: &Remains) {
    assert_eq!(process.wait(), 137);
    assert_eq!(engine.state()["status"], "stopped");
    engine.call(&["kill"]).assert_refused(&["not running"]);
    let list = engine.runtime.call(&["list"]);
    list.assert_prints_part(&engine.id);
    engine.call(&["delete", "--force"]).assert_status(0);
    before.assert_nothing_new(&engine.id, &engine.runtime.root());
}

#[test]
fn a_supervisor_killed_before_the_start() {
    let before = Remains::seen();
    let engine = engine();
    let process = engine.make(&["create"], &[]);
    process.signal(Signal::KILL);
    bury(&engine, process, &before);
}

#[test]
fn a_supervisor_killed_while_running_and_another_run_at_once() {
    let (before, engine, process) = running();
    let exec = engine.exec(&[], &["sleep", "1000"]);
    process.signal(Signal::KILL);
    assert_eq!(exec.wait(), 137);
    Runtime::from_environment()
        .run(&Bundle::busybox().shell("echo next"))
        .assert_prints("next\n");
    bury(&engine, process, &before);
}

#[test]
fn a_vm_killed_before_the_start() {
    only_husk("runc has no VM");
    let before = Remains::seen();
    let engine = engine();
    let process = engine.make(&["create"], &[]);
    signal_vm(&engine, Signal::KILL);
    bury(&engine, process, &before);
}

#[test]
fn a_vm_killed_while_running() {
    only_husk("runc has no VM");
    let (before, engine, process) = running();
    let exec = engine.exec(&[], &["sleep", "1000"]);
    signal_vm(&engine, Signal::KILL);
    assert_eq!(exec.wait(), 137);
    bury(&engine, process, &before);
}

#[test]
fn a_vm_that_hangs_is_ended_by_a_kill() {
    only_husk("runc has no VM");
    let (before, engine, process) = running();
    signal_vm(&engine, Signal::STOP);
    let words = ["kill", &engine.id, "KILL"];
    engine.runtime.call(&words).assert_status(0);
    bury(&engine, process, &before);
}

#[test]
fn a_vm_that_hangs_is_deleted_by_force() {
    only_husk("runc has no VM");
    let (before, engine, process) = running();
    signal_vm(&engine, Signal::STOP);
    engine.call(&["delete", "--force"]).assert_status(0);
    assert_eq!(process.wait(), 137);
    before.assert_nothing_new(&engine.id, &engine.runtime.root());
}

/// What was there before, and a `create` at work that has come so far with its state directory.
fn creating(so_far: impl Fn(&Path) -> bool) -> (Remains, Engine, Child) {
    let before = Remains::seen();
    let engine = engine();
    let bundle = engine.bundle().path().to_str().unwrap();
    let words = ["create", "--bundle", bundle, &engine.id];
    let create = engine.command(&words).spawn().unwrap();
    let state = engine.runtime.root().join(&engine.id);
    wait::until("it comes so far", || so_far(&state));
    (before, engine, create)
}

fn has_vm(state: &Path) -> bool {
    let record = fs::read_to_string(state.join("state.json"));
    record.is_ok_and(|record| record.contains(r#""vmm":{"#))
}

#[test]
fn a_create_killed_at_work() {
    let (before, engine, mut create) = creating(Path::exists);
    create.kill().unwrap();
    create.wait().unwrap();
    engine.call(&["delete", "--force"]).assert_status(0);
    before.assert_nothing_new(&engine.id, &engine.runtime.root());
}

#[test]
fn a_supervisor_killed_during_a_create() {
    only_husk("runc has no supervisor");
    let (before, engine, mut create) = creating(has_vm);
    let supervisor = engine.runtime.process(&engine.id, "supervisor");
    kill_process(supervisor, Signal::KILL).unwrap();
    assert_eq!(create.wait().unwrap().code(), Some(1));
    assert_eq!(engine.errors().lines().count(), 1, "{}", engine.errors());
    assert_eq!(engine.state()["status"], "stopped");
    engine.call(&["kill"]).assert_refused(&["not running"]);
    engine.call(&["delete"]).assert_status(0);
    before.assert_nothing_new(&engine.id, &engine.runtime.root());
}

#[test]
fn a_vm_killed_during_a_create() {
    only_husk("runc has no VM");
    let (before, engine, mut create) = creating(has_vm);
    signal_vm(&engine, Signal::KILL);
    assert_eq!(create.wait().unwrap().code(), Some(1));
    assert!(engine.errors().contains("signal 9"), "{}", engine.errors());
    before.assert_nothing_new(&engine.id, &engine.runtime.root());
}

#[test]
fn a_start_killed_at_work() {
    let before = Remains::seen();
    let engine = engine();
    let process = engine.make(&["create"], &[]);
    let mut start = engine.command(&["start", &engine.id]).spawn().unwrap();
    start.kill().unwrap();
    start.wait().unwrap();
    let status = engine.state()["status"].clone();
    assert!(status == "created" || status == "running", "{status}");
    engine.call(&["delete", "--force"]).assert_status(0);
    assert_eq!(process.wait(), 137);
    before.assert_nothing_new(&engine.id, &engine.runtime.root());
}

/// Has the container deleted while one of its processes is killed, and then again.
fn deleted_meanwhile(role: &str) {
    only_husk("runc has no VM");
    let (before, engine, process) = running();
    let victim = engine.runtime.process(&engine.id, role);
    let words = ["delete", "--force", &engine.id];
    let mut delete = engine.command(&words).spawn().unwrap();
    // It may have ended with the container already.
    let _ = kill_process(victim, Signal::KILL);
    assert_eq!(delete.wait().unwrap().code(), Some(0));
    assert_eq!(process.wait(), 137);
    engine.call(&["delete", "--force"]).assert_status(0);
    before.assert_nothing_new(&engine.id, &engine.runtime.root());
}

#[test]
fn a_supervisor_killed_during_a_delete() {
    deleted_meanwhile("supervisor");
}

#[test]
fn a_vm_killed_during_a_delete() {
    deleted_meanwhile("vmm");
}

#[test]
fn a_killed_exec_takes_its_process_along() {
    only_husk("a process of runc's outlives its exec");
    let engine = engine();
    let _process = engine.make(&["run", "--detach"], &[]);
    let exec = engine.exec(&[], &["sleep", "2000"]);
    exec.signal(Signal::KILL);
    assert_eq!(exec.wait(), 137);
    let words = [
        "exec",
        &engine.id,
        "sh",
        "-c",
        "while ps | grep '[s]leep 2000'; do sleep 0.1; done",
    ];
    engine.runtime.call(&words).assert_status(0);
}

#[test]
fn a_delete_killed_at_work_can_be_repeated() {
    let before = Remains::seen();
    let engine = engine();
    let process = engine.make(&["run", "--detach"], &[]);
    let mut delete = engine
        .command(&["delete", "--force", &engine.id])
        .spawn()
        .unwrap();
    delete.kill().unwrap();
    delete.wait().unwrap();
    engine.call(&["delete", "--force"]).assert_status(0);
    assert_eq!(process.wait(), 137);
    before.assert_nothing_new(&engine.id, &engine.runtime.root());
}
