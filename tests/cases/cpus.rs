//! As many CPUs as the quota asks for.

use harness::{Bundle, Runtime};
use serde_json::json;

fn seen_with_quota(cpus: i64) -> String {
    let bundle = Bundle::busybox()
        .shell("nproc; grep -c ^processor /proc/cpuinfo")
        .with(
            "/linux/resources/cpu",
            json!({"quota": cpus * 100_000, "period": 100_000}),
        );
    let output = Runtime::from_environment().run(&bundle);
    output.assert_status(0);
    output.text()
}

#[test]
fn two() {
    if !Runtime::is_husk() {
        return;
    }
    assert_eq!(seen_with_quota(2), "2\n2\n");
}

#[test]
fn both_work_at_once() {
    if !Runtime::is_husk() {
        return;
    }
    let bundle = Bundle::busybox()
        .shell("for c in 0 1; do taskset -c $c sh -c 'i=0; while [ $i -lt 2000 ]; do i=$((i+1)); done; echo done' & done; wait")
        .with("/linux/resources/cpu", json!({"quota": 200_000, "period": 100_000}));
    Runtime::from_environment()
        .run(&bundle)
        .assert_prints("done\ndone\n");
}
