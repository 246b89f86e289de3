//! Limits on memory and processes.

use harness::{Bundle, Runtime, only_husk};
use serde_json::json;

#[test]
fn too_much_memory_is_killed_and_said_so() {
    let runtime = Runtime::from_environment();
    // The shell itself is the one that grows, so that the container ends with it.
    let bundle = Bundle::busybox()
        .args(&["sh", "-c", "exec tail -c 200m /dev/zero"])
        .with(
            "/linux/resources/memory",
            json!({"limit": 32 << 20, "swap": 32 << 20}),
        );
    runtime.run(&bundle).assert_status(137);
    if Runtime::is_husk() {
        let log = runtime.log();
        assert!(log.contains("out of memory"), "{log}");
    }
}

#[test]
fn memory_within_the_limit_is_there() {
    let bundle = Bundle::busybox()
        .shell("head -c 20m /dev/zero | tail -c 20m | wc -c; cat /sys/fs/cgroup/memory.max")
        .with("/linux/resources/memory", json!({"limit": 64 << 20}));
    Runtime::from_environment()
        .run(&bundle)
        .assert_prints("20971520\n67108864\n");
}

#[test]
fn a_large_limit_makes_a_large_machine() {
    only_husk("runc has no VM");
    let bundle = Bundle::busybox()
        .shell("awk '/MemTotal/ {print ($2 > 1000000)}' /proc/meminfo")
        .with("/linux/resources/memory", json!({"limit": 1024 << 20}));
    Runtime::from_environment()
        .run(&bundle)
        .assert_prints("1\n");
}

#[test]
fn processes_are_limited() {
    let bundle = Bundle::busybox()
        .shell("i=0; while [ $i -lt 20 ]; do sleep 5 & i=$((i+1)); done 2>&1; cat /sys/fs/cgroup/pids.max")
        .with("/linux/resources/pids", json!({"limit": 8}));
    let output = Runtime::from_environment().run(&bundle);
    let shown = output.text() + &output.errors();
    assert!(shown.contains("fork"), "{output:?}");
}

#[test]
fn cpu_time_is_limited() {
    // Each look takes CPU time, until all that a period has is used up.
    let script = "cd /sys/fs/cgroup; cat cpu.max; i=0; while [ $i -lt 2000 ]; do i=$((i+1)); \
        grep -q '^nr_throttled [1-9]' cpu.stat && echo throttled && break; done";
    let bundle = Bundle::busybox().shell(script).with(
        "/linux/resources/cpu",
        json!({"quota": 10000, "period": 100_000}),
    );
    Runtime::from_environment()
        .run(&bundle)
        .assert_prints("10000 100000\nthrottled\n");
}
