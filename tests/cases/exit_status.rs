//! The exit status of `run` is the container's.

use harness::{Bundle, Runtime};

fn status_of(script: &str) -> i32 {
    Runtime::from_environment()
        .run(&Bundle::busybox().shell(script))
        .status
}

#[test]
fn zero() {
    assert_eq!(status_of("exit 0"), 0);
}

#[test]
fn one() {
    assert_eq!(status_of("exit 1"), 1);
}

#[test]
fn largest() {
    assert_eq!(status_of("exit 255"), 255);
}

#[test]
fn killed_by_a_signal_is_128_and_its_number() {
    // The first process of a pid namespace is not killed by its own signals, so another one is, and the shell says how.
    assert_eq!(status_of("sh -c 'kill -KILL $$'; exit $?"), 137);
    let runtime = Runtime::from_environment();
    let bundle = Bundle::busybox().shell("trap - TERM; echo up; sleep 1000");
    let mut running = runtime.start(&bundle);
    running.wait_for("up\n");
    let id = running.id.clone();
    let _sent = runtime.call(&["kill", &id, "KILL"]);
    running.wait().assert_status(137);
}
