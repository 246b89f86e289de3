//! What a container uses, and that it ran out of memory.

use std::io::{BufRead, BufReader};

use harness::{Background, Bundle, Runtime};
use serde_json::{Value, json};

fn limited() -> Bundle {
    Bundle::busybox()
        .shell("echo up; while :; do sleep 1; done")
        .with(
            "/linux/resources/memory",
            json!({"limit": 32 << 20, "swap": 32 << 20}),
        )
        .with("/linux/resources/pids", json!({"limit": 50}))
}

#[test]
fn statistics_are_those_of_the_container() {
    let runtime = Runtime::from_environment();
    let mut container = Background::started(&runtime, limited());
    container.wait_for("up\n");
    let output = container.call(&["events", "--stats"]);
    output.assert_status(0);
    assert_eq!(output.text().lines().count(), 1);
    let line: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(line["type"], "stats");
    assert_eq!(line["id"], container.id.as_str());
    let data = &line["data"];
    assert!(
        data["cpu"]["usage"]["total"].as_u64().unwrap() > 0,
        "{data}"
    );
    assert_eq!(data["memory"]["usage"]["limit"], 32 << 20);
    let usage = data["memory"]["usage"]["usage"].as_u64().unwrap();
    assert!((1..32 << 20).contains(&usage), "{data}");
    assert!(
        data["memory"]["raw"]["anon"].as_u64().unwrap() > 0,
        "{data}"
    );
    assert_eq!(data["pids"]["limit"], 50);
    container.remove();
}

#[test]
fn a_process_that_is_killed_for_memory_is_told_until_the_container_ends() {
    let runtime = Runtime::from_environment();
    let mut container = Background::started(&runtime, limited());
    container.wait_for("up\n");
    let words = ["events", "--interval", "100ms", &container.id];
    let mut events = runtime.command(&words).spawn().unwrap();
    let lines = BufReader::new(events.stdout.take().unwrap()).lines();
    let mut types = lines.map(|line| {
        let line: Value = serde_json::from_str(&line.unwrap()).unwrap();
        line["type"].as_str().unwrap().to_owned()
    });
    // From here on it listens.
    assert_eq!(types.next().as_deref(), Some("stats"));
    let eater = container.exec(&["sh", "-c", "tail -c 200m /dev/zero; true"]);
    assert!(types.any(|kind| kind == "oom"), "{eater:?}");
    container.kill("KILL").assert_status(0);
    container.until_stopped();
    container.remove();
    assert!(types.all(|kind| kind == "stats" || kind == "oom"));
    assert!(events.wait().unwrap().success());
}

#[test]
fn intervals_that_are_none_are_refused() {
    let runtime = Runtime::from_environment();
    let container = Background::created(&runtime, Bundle::busybox());
    for interval in ["0s", "x"] {
        let output = container.call(&["events", "--interval", interval]);
        assert_ne!(output.status, 0, "{interval}");
    }
    container.remove();
}
