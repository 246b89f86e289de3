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

#[test]
fn quota_is_rounded_up_to_what_may_be() {
    only_husk("runc has no VM");
    let host = std::thread::available_parallelism().unwrap().get();
    // Without a maximum it is what the host has: more would only take turns.
    for (configuration, whole, seen) in [("vcpus_max = 2", 1, 2), ("", host, host)] {
        let quota = json!({"quota": whole * 100_000 + 50_000, "period": 100_000});
        let bundle = Bundle::busybox()
            .shell(SEEN)
            .with("/linux/resources/cpu", quota);
        Runtime::from_environment()
            .configured(configuration)
            .run(&bundle)
            .assert_prints(&format!("{seen}\n{seen}\n"));
    }
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
