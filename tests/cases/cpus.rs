//! As many CPUs as are configured, or as the quota asks for.

use harness::{Bundle, Runtime, only_husk};
use serde_json::json;

const SEEN: &str = "nproc; grep -c ^processor /proc/cpuinfo";

fn configured(cpus: u8) {
    only_husk("runc has no VM");
    Runtime::from_environment()
        .configured(&format!("vcpus = {cpus}"))
        .run(&Bundle::busybox().shell(SEEN))
        .assert_prints(&format!("{cpus}\n{cpus}\n"));
}

#[test]
fn two() {
    configured(2);
}

#[test]
fn four() {
    configured(4);
}

/// More than the host has would only take turns.
#[test]
fn quota_is_rounded_up_to_what_the_host_has() {
    only_husk("runc has no VM");
    let host = std::thread::available_parallelism().unwrap().get();
    let bundle = Bundle::busybox().shell(SEEN).with(
        "/linux/resources/cpu",
        json!({"quota": 150_000, "period": 100_000}),
    );
    let seen = host.min(2);
    Runtime::from_environment()
        .run(&bundle)
        .assert_prints(&format!("{seen}\n{seen}\n"));
}

#[test]
fn both_work_at_once() {
    only_husk("runc has no VM");
    let work = "i=0; while [ $i -lt 2000 ]; do i=$((i+1)); done; echo done";
    let script = format!("for c in 0 1; do taskset -c $c sh -c '{work}' & done; wait");
    let bundle = Bundle::busybox().shell(&script);
    Runtime::from_environment()
        .configured("vcpus = 2")
        .run(&bundle)
        .assert_prints("done\ndone\n");
}
