//! A VM is as large as its bundle asks for.

use harness::{Bundle, Runtime, only_husk};
use serde_json::json;

const SHOW: &str = "nproc; awk '/MemTotal/ {print ($2 > 250000 && $2 < 320000)}' /proc/meminfo";

#[test]
fn annotations_say_how_large() {
    only_husk("runc has no VM");
    let bundle = Bundle::busybox().shell(SHOW).with(
        "/annotations",
        json!({"io.husk.memory": "300", "io.katacontainers.config.hypervisor.default_vcpus": "1.5"}),
    );
    let runtime = Runtime::from_environment();
    runtime.run(&bundle).assert_prints("2\n1\n");
}

#[test]
fn the_vm_section_says_how_large_and_nothing_else() {
    only_husk("runc has no VM");
    let runtime = Runtime::from_environment();
    let hardware = json!({"hwConfig": {"vcpus": 2, "memory": 300 << 20}});
    let bundle = Bundle::busybox().shell(SHOW).with("/vm", hardware);
    runtime.run(&bundle).assert_prints("2\n1\n");
    let bundle = Bundle::busybox().with("/vm", json!({"kernel": {"path": "/boot/vmlinuz"}}));
    runtime.run(&bundle).assert_refused(&["vm.kernel"]);
    let bundle = Bundle::busybox().with("/annotations", json!({"io.husk.vcpus": "many"}));
    runtime
        .run(&bundle)
        .assert_refused(&["io.husk.vcpus", "many"]);
}
