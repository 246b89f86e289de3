//! Signals sent to `run` reach the container.

use harness::{Bundle, Remains, Runtime, only_husk, wait};
use rustix::process::Signal;

fn passes(signal: Signal, name: &str) {
    let runtime = Runtime::from_environment();
    let before = Remains::seen();
    let script =
        format!("trap 'echo got {name}; exit 9' {name}; echo up; while :; do sleep 0.1; done");
    let bundle = Bundle::busybox().shell(&script);
    let mut running = runtime.start(&bundle);
    let id = running.id.clone();
    running.wait_for("up\n");
    running.signal(signal);
    let output = running.wait();
    output.assert_status(9);
    assert_eq!(output.text(), format!("got {name}\n"));
    before.assert_nothing_new(&id, &runtime.root());
}

#[test]
fn terminate() {
    passes(Signal::TERM, "TERM");
}

#[test]
fn interrupt() {
    passes(Signal::INT, "INT");
}

#[test]
fn user_defined() {
    passes(Signal::USR1, "USR1");
}

#[test]
fn a_killed_command_takes_its_container_with_it() {
    only_husk("a container of runc outlives its command");
    let runtime = Runtime::from_environment();
    let before = Remains::seen();
    let bundle = Bundle::busybox().shell("echo up; sleep 1000");
    let mut running = runtime.start(&bundle);
    let id = running.id.clone();
    running.wait_for("up\n");
    running.signal(Signal::KILL);
    running.wait().assert_status(137);
    // The supervisor notices, and takes its time to put things away.
    let state = runtime.root().join(&id);
    wait::until_change("no state", &runtime.root(), || !state.exists());
    before.assert_nothing_new(&id, &runtime.root());
}
