//! Hooks: when they run, what they are given, and what a failure does.

use std::fs;
use std::path::Path;

use harness::{Background, Bundle, Runtime, only_husk};
use serde_json::{Value, json};

use super::{refused, run};

/// A hook that appends its name, and its standard input as a line, to `log` in the bundle, and ends with a status.
fn hook(bundle: &Bundle, name: &str, status: u8) -> Value {
    let script = format!("echo {name} $(tr -d ' \\n') >>$LOG; exit {status}");
    json!({"path": "/bin/sh", "args": ["sh", "-c", script], "env": [format!("LOG={}", log(bundle).display())]})
}

fn log(bundle: &Bundle) -> std::path::PathBuf {
    bundle.path().join("log")
}

/// Name and state of each hook that has run.
fn ran(log: &Path) -> Vec<(String, Value)> {
    let text = fs::read_to_string(log).unwrap_or_default();
    text.lines()
        .map(|line| {
            let (name, state) = line.split_once(' ').unwrap();
            (name.to_owned(), serde_json::from_str(state).unwrap())
        })
        .collect()
}

fn names(log: &Path) -> Vec<String> {
    ran(log).into_iter().map(|(name, _)| name).collect()
}

#[test]
fn they_run_in_order_and_in_time_with_the_state_on_standard_input() {
    let runtime = Runtime::from_environment();
    let bundle = Bundle::busybox().args(&["sleep", "1000"]);
    let hook = |name| hook(&bundle, name, 0);
    let hooks = json!({
        "poststop": [hook("f1"), hook("f2")],
        "poststart": [hook("e1"), hook("e2")],
        "createRuntime": [hook("b1"), hook("b2")],
        "prestart": [hook("a1"), hook("a2")],
    });
    let log = log(&bundle);
    let bundle = bundle
        .with("/hooks", hooks)
        .with("/annotations", json!({"key": "value"}));
    let path = bundle.path().to_owned();
    let container = Background::created(&runtime, bundle);
    assert_eq!(names(&log)[..4], ["a1", "a2", "b1", "b2"]);
    container.call(&["start"]).assert_status(0);
    assert_eq!(names(&log)[4..], ["e1", "e2"]);
    let pid = container.state()["pid"].clone();
    container.kill("KILL").assert_status(0);
    container.until_stopped();
    assert_eq!(names(&log).len(), 6);
    container.call(&["delete"]).assert_status(0);
    assert_eq!(names(&log)[6..], ["f1", "f2"]);
    for (name, state) in ran(&log) {
        assert_eq!(state["id"], container.id.as_str(), "{name}: {state}");
        assert_eq!(state["bundle"], path.to_str().unwrap(), "{name}: {state}");
        assert_eq!(state["annotations"]["key"], "value", "{name}: {state}");
        let status = match &name[..1] {
            "a" | "b" => "creating",
            // runc runs these at create.
            "e" if Runtime::is_husk() => "running",
            "e" => "created",
            _ => "stopped",
        };
        assert_eq!(state["status"], status, "{name}: {state}");
        if status != "stopped" {
            assert_eq!(state["pid"], pid, "{name}: {state}");
        }
    }
}

#[test]
fn one_that_fails_at_create_ends_the_container_and_those_after_it_are_not_run() {
    for kind in ["prestart", "createRuntime"] {
        let bundle = Bundle::busybox();
        let (good, bad) = (hook(&bundle, "good", 0), hook(&bundle, "bad", 3));
        let stop = hook(&bundle, "stop", 0);
        let log = log(&bundle);
        let bundle = bundle.with("/hooks", json!({kind: [bad, good], "poststop": [stop]}));
        refused(&bundle, kind);
        assert_eq!(names(&log), ["bad", "stop"], "{kind}");
    }
}

#[test]
fn one_that_fails_after_the_container_costs_a_warning() {
    only_husk("runc ends the container");
    let runtime = Runtime::from_environment();
    let bundle = Bundle::busybox().args(&["echo", "ran"]);
    let hooks = json!({
        "poststart": [hook(&bundle, "bad-start", 3), hook(&bundle, "start", 0)],
        "poststop": [hook(&bundle, "bad-stop", 4), hook(&bundle, "stop", 0)],
    });
    let log = log(&bundle);
    let bundle = bundle.with("/hooks", hooks);
    runtime.run(&bundle).assert_prints("ran\n");
    assert_eq!(names(&log), ["bad-start", "start", "bad-stop", "stop"]);
    for status in ["3", "4"] {
        let warning = format!("exit status: {status}");
        assert!(runtime.log().contains(&warning), "{status}");
    }
}

#[test]
fn one_that_takes_too_long_is_ended() {
    let bundle = Bundle::busybox().with(
        "/hooks",
        json!({"createRuntime": [{"path": "/bin/sleep", "args": ["sleep", "1000"], "timeout": 1}]}),
    );
    refused(&bundle, "a hook without an end");
}

#[test]
fn those_that_are_none_are_refused() {
    only_husk("runc looks at neither");
    let with = |hook: Value| Bundle::busybox().with("/hooks", json!({"poststop": [hook]}));
    refused(&with(json!({"path": "bin/true"})), "a relative path");
    refused(
        &with(json!({"path": "/bin/true", "timeout": 0})),
        "no time at all",
    );
    refused(
        &with(json!({"path": "/bin/true", "timeout": -1})),
        "a negative time",
    );
}

#[test]
fn those_of_the_containers_creation_and_start_are_run() {
    let bundle = Bundle::busybox().args(&["cat", "/started"]);
    let create = hook(&bundle, "create", 0);
    let start = json!({"path": "/bin/sh", "args": ["sh", "-c", "cat >/started"]});
    let log = log(&bundle);
    let bundle = bundle.with(
        "/hooks",
        json!({"createContainer": [create], "startContainer": [start]}),
    );
    let output = run(&bundle);
    output.assert_status(0);
    let state: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(state["status"], "created");
    assert_eq!(names(&log), ["create"]);
}
