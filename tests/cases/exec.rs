//! Further processes of a container: where they are, and how they end.

use harness::{Bundle, Engine, wait};
use serde_json::json;

const LOOP: &str = "trap 'exit 5' TERM; echo up; while :; do sleep 0.1; done";

/// With its cgroups to be written.
fn with_cgroups() -> Bundle {
    let mount = json!({
        "destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
        "options": ["nosuid", "noexec", "nodev"]
    });
    Bundle::busybox().shell(LOOP).mount(mount)
}

#[test]
fn what_it_has_started_lives_on_and_writes_where_it_did() {
    let engine = Engine::of(Bundle::busybox().shell(LOOP));
    let process = engine.make(&["run", "--detach"], &[]);
    engine.await_output("up\n");
    // One child says something all the time, the other nothing until it is told to.
    let loud = "(while [ ! -e /go ]; do echo tick; sleep 0.1; done; echo late; : >/loud) & \
                echo own; exit 4";
    assert_eq!(engine.exec(&[], &["sh", "-c", loud]).wait(), 4);
    let said = engine.output();
    assert!(said.contains("own\n"), "{said}");
    let quiet = "(while [ ! -e /go ]; do sleep 0.1; done; echo quiet; : >/quiet) & exit 6";
    let words = ["exec", &engine.id, "sh", "-c", quiet];
    let status = engine.command(&words).status().unwrap();
    assert_eq!(status.code(), Some(6), "{}", engine.errors());
    let words = ["exec", &engine.id, "touch", "/go"];
    engine.runtime.call(&words).assert_status(0);
    engine.await_output("late\n");
    engine.await_output("quiet\n");
    // Their words were not their end.
    for file in ["loud", "quiet"] {
        wait::until(file, || engine.bundle().rootfs().join(file).exists());
    }
    engine.call(&["kill"]).assert_status(0);
    assert_eq!(process.wait(), 5);
}

#[test]
fn it_is_in_the_cgroup_that_it_is_given() {
    let engine = Engine::of(with_cgroups());
    let _process = engine.make(&["run", "--detach"], &[]);
    engine.await_output("up\n");
    let exec = |options: &[&str], script: &str| {
        let words = [&["exec"], options, &[&engine.id, "sh", "-ec", script]].concat();
        engine.runtime.call(&words)
    };
    let own = "cat /proc/self/cgroup";
    exec(&[], own).assert_prints("0::/\n");
    exec(&["--cgroup", "/"], own).assert_prints("0::/\n");
    let outside = exec(&["--cgroup", ".."], own);
    assert_eq!(outside.status, 255);
    outside.assert_refused(&[".. is not a sub cgroup path"]);
    let missing = exec(&["--cgroup", "none"], own);
    assert_eq!(missing.status, 255);
    missing.assert_refused(&["none"]);
    exec(&[], "mkdir /sys/fs/cgroup/part").assert_status(0);
    exec(&["--cgroup", "part"], own).assert_prints("0::/part\n");
    // Its init moves, and a further process follows it unless it is told otherwise.
    let moved = "echo 1 >/sys/fs/cgroup/part/cgroup.procs; grep -q part /proc/1/cgroup; \
                 for p in $(cat /sys/fs/cgroup/cgroup.procs); do \
                 echo $p >/sys/fs/cgroup/part/cgroup.procs || true; done; \
                 echo +memory >/sys/fs/cgroup/cgroup.subtree_control";
    exec(&[], moved).assert_status(0);
    exec(&[], own).assert_prints("0::/part\n");
}
