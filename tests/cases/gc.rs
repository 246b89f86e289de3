//! What a crashed supervisor left behind is removed, and nothing else.

use std::fs;

use harness::{Background, Bundle, Runtime};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

fn supervisor(runtime: &Runtime, id: &str) -> Pid {
    let text = fs::read(runtime.root().join(id).join("state.json")).unwrap();
    let record: Value = serde_json::from_slice(&text).unwrap();
    let pid = record["supervisor"]["pid"].as_i64().unwrap();
    Pid::from_raw(i32::try_from(pid).unwrap()).unwrap()
}

#[test]
fn the_dead_are_removed_and_the_living_left_alone() {
    if !Runtime::is_husk() {
        return;
    }
    let runtime = Runtime::from_environment();
    let bundle = Bundle::busybox().args(&["sleep", "1000"]);
    let dead = Background::started(&runtime, bundle);
    let bundle = Bundle::busybox().args(&["sleep", "1000"]);
    let living = Background::started(&runtime, bundle);
    runtime.call(&["gc"]).assert_prints("");
    kill_process(supervisor(&runtime, &dead.id), Signal::KILL).unwrap();
    dead.until_stopped();
    let output = runtime.call(&["gc"]);
    output.assert_prints_part(&format!("{}: removed ", dead.id));
    output.assert_prints_part("state ");
    assert!(!output.text().contains(&living.id), "{output:?}");
    runtime.call(&["gc"]).assert_prints("");
    assert_eq!(living.status(), "running");
    living.exec(&["echo", "well"]).assert_prints("well\n");
    living.remove();
    dead.remove();
}
