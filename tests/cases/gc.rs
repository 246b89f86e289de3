//! What a crashed supervisor left behind is removed, and nothing else.

use harness::{Background, Bundle, Runtime, only_husk};
use rustix::process::{Signal, kill_process};

#[test]
fn the_dead_are_removed_and_the_living_left_alone() {
    only_husk("runc has no such verb");
    let runtime = Runtime::from_environment();
    let bundle = Bundle::busybox().args(&["sleep", "1000"]);
    let dead = Background::started(&runtime, bundle);
    let bundle = Bundle::busybox().args(&["sleep", "1000"]);
    let living = Background::started(&runtime, bundle);
    runtime.call(&["gc"]).assert_prints("");
    kill_process(runtime.process(&dead.id, "supervisor"), Signal::KILL).unwrap();
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
