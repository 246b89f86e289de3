//! Hooks, each where and when it is to run.

use std::fs;

use harness::{Bundle, Engine, Remains, Runtime, only_husk};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::{Value, json};

/// A hook that appends its name, the state's status, and whether there is a pid, to `log`.
fn hook(log: &str, name: &str) -> Value {
    let script = format!(
        "status=$(sed 's/.*\"status\": *\"\\([a-z]*\\)\".*/\\1/'); echo {name} $status >>{log}"
    );
    json!([{"path": "/bin/sh", "args": ["sh", "-c", script]}])
}

fn with_hooks(log: &str) -> Bundle {
    let kinds = [
        "prestart",
        "createRuntime",
        "createContainer",
        "poststart",
        "poststop",
    ];
    let hooks: serde_json::Map<_, _> = kinds
        .into_iter()
        .map(|kind| (kind.to_owned(), hook(log, kind)))
        .collect();
    Bundle::busybox().with("/hooks", hooks.into())
}

#[test]
fn they_run_in_order() {
    only_husk("runc tells other states");
    let directory = tempfile::tempdir().unwrap();
    let log = directory.path().join("log");
    let bundle = with_hooks(log.to_str().unwrap());
    Runtime::from_environment().run(&bundle).assert_status(0);
    assert_eq!(
        fs::read_to_string(&log).unwrap(),
        "prestart creating\ncreateRuntime creating\ncreateContainer creating\n\
         poststart running\npoststop stopped\n"
    );
}

#[test]
fn poststop_is_owed_until_the_deletion() {
    only_husk("runc tells other states");
    let before = Remains::seen();
    let directory = tempfile::tempdir().unwrap();
    let log = directory.path().join("log");
    let engine = Engine::of(with_hooks(log.to_str().unwrap()));
    let process = engine.make(&["run", "--detach"], &[]);
    assert_eq!(process.wait(), 0);
    assert!(!fs::read_to_string(&log).unwrap().contains("poststop"));
    engine.call(&["delete"]).assert_status(0);
    assert!(
        fs::read_to_string(&log)
            .unwrap()
            .ends_with("poststop stopped\n")
    );
    before.assert_nothing_new(&engine.id, &engine.runtime.root());
}

#[test]
fn they_may_open_what_the_caller_may() {
    const DESCRIPTORS: u64 = 300;
    let directory = tempfile::tempdir().unwrap();
    let log = directory.path().join("log");
    let script = format!("ulimit -Sn >{}", log.display());
    let hook = json!([{"path": "/bin/sh", "args": ["sh", "-c", script]}]);
    let limit = Rlimit {
        current: Some(DESCRIPTORS),
        ..getrlimit(Resource::Nofile)
    };
    setrlimit(Resource::Nofile, limit).unwrap();
    let bundle = Bundle::busybox().with("/hooks", json!({"createRuntime": hook}));
    Runtime::from_environment().run(&bundle).assert_status(0);
    let seen = fs::read_to_string(&log).unwrap();
    assert_eq!(seen.trim(), DESCRIPTORS.to_string());
}

#[test]
fn the_error_of_one_has_its_number_and_its_own_words() {
    let script = "echo no network here >&2; exit 3";
    let hooks = json!([{"path": "/bin/true"}, {"path": "/bin/sh", "args": ["sh", "-c", script]}]);
    let bundle = Bundle::busybox().with("/hooks", json!({"createRuntime": hooks}));
    let output = Runtime::from_environment().run(&bundle);
    output.assert_refused(&["error", "hook #1: ", "exit status", "no network here"]);
    if Runtime::is_husk() {
        output.assert_refused(&["error running createRuntime hook #1: /bin/sh: exit status: 3"]);
    }
}

#[test]
fn one_before_the_program_has_its_environment() {
    let script = "echo $ONE $FOO ${HOME:+home} >/seen";
    let hook = json!([{"path": "/bin/sh", "args": ["sh", "-c", script]}]);
    let bundle = Bundle::busybox()
        .args(&["cat", "/seen"])
        .with("/process/env", json!(["PATH=/bin", "ONE=two", "FOO=bar"]))
        .with("/hooks", json!({"startContainer": hook}));
    Runtime::from_environment()
        .run(&bundle)
        .assert_prints("two bar home\n");
}

#[test]
fn one_after_the_start_can_stop_a_container_of_version_1_3() {
    let directory = tempfile::tempdir().unwrap();
    let log = directory.path().join("log");
    let bad = json!([{"path": "/bin/sh", "args": ["sh", "-c", "exit 3"]}]);
    let hooks = json!({"poststart": bad, "poststop": hook(log.to_str().unwrap(), "poststop")});
    let bundle = Bundle::busybox()
        .args(&["sleep", "1000"])
        .with("/ociVersion", json!("1.3.0"))
        .with("/hooks", hooks);
    let engine = Engine::of(bundle);
    let path = engine.bundle().path().to_str().unwrap().to_owned();
    let before = Remains::seen();
    let words = ["run", "--detach", "--bundle", &path, &engine.id];
    let status = engine.command(&words).status().unwrap();
    assert!(!status.success());
    let errors = engine.errors();
    assert!(errors.contains("hook #0: "), "{errors}");
    if Runtime::is_husk() {
        assert_eq!(fs::read_to_string(&log).unwrap(), "poststop stopped\n");
    }
    before.assert_nothing_new(&engine.id, &engine.runtime.root());
}

#[test]
fn a_failing_one_leaves_no_container() {
    let hook = json!([{"path": "/bin/sh", "args": ["sh", "-c", "exit 3"]}]);
    let bundle = Bundle::busybox().with("/hooks", json!({"createRuntime": hook}));
    let output = Runtime::from_environment().run(&bundle);
    assert_ne!(output.status, 0);
    if Runtime::is_husk() {
        output.assert_refused(&["/bin/sh", "exit status: 3"]);
    }
}
