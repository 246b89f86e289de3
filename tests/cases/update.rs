//! Limits are changed while a container lives.

use std::io::Write;
use std::process::Stdio;

use harness::{Background, Bundle, Runtime, only_husk};
use serde_json::json;

fn sleeper() -> Bundle {
    Bundle::busybox().args(&["sleep", "1000"])
}

#[track_caller]
fn assert_limit(container: &Background<'_>, file: &str, text: &str) {
    let path = format!("/sys/fs/cgroup/{file}");
    container
        .exec(&["cat", &path])
        .assert_prints(&format!("{text}\n"));
}

#[test]
fn options_set_what_they_say_and_nothing_else() {
    let runtime = Runtime::from_environment();
    let bundle = sleeper().with(
        "/linux/resources/memory",
        json!({"limit": 64 << 20, "swap": 64 << 20}),
    );
    let container = Background::started(&runtime, bundle);
    container
        .call(&[
            "update",
            "--pids-limit",
            "77",
            "--cpu-quota",
            "50000",
            "--cpu-period",
            "100000",
        ])
        .assert_prints("");
    assert_limit(&container, "pids.max", "77");
    assert_limit(&container, "cpu.max", "50000 100000");
    assert_limit(&container, "memory.max", "67108864");
    container
        .call(&["update", "--memory", "48m", "--memory-swap", "48m"])
        .assert_status(0);
    assert_limit(&container, "memory.max", "50331648");
    assert_limit(&container, "pids.max", "77");
    container.remove();
}

#[test]
fn resources_come_from_a_file_or_from_standard_input() {
    let runtime = Runtime::from_environment();
    let container = Background::started(&runtime, sleeper());
    let mut file = tempfile::NamedTempFile::new().unwrap();
    let resources = |limit: u32| json!({"memory": {"limit": 0}, "pids": {"limit": limit}});
    write!(file, "{}", resources(33)).unwrap();
    let path = file.path().to_str().unwrap();
    container
        .call(&["update", "--resources", path])
        .assert_status(0);
    assert_limit(&container, "pids.max", "33");
    let mut command = runtime.command(&["update", "--resources", "-", &container.id]);
    let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    write!(stdin, "{}", resources(44)).unwrap();
    drop(stdin);
    assert!(child.wait_with_output().unwrap().status.success());
    assert_limit(&container, "pids.max", "44");
    container.remove();
}

#[test]
fn values_that_are_none_are_refused() {
    let runtime = Runtime::from_environment();
    let container = Background::started(&runtime, sleeper());
    let output = container.call(&["update", "--memory", "foo"]);
    assert_ne!(output.status, 0);
    assert!(
        output.errors().contains("invalid value for memory"),
        "{output:?}"
    );
    assert_ne!(
        container
            .call(&["update", "--resources", "/not/there"])
            .status,
        0
    );
    container.remove();
}

/// Memory of the guest, MiB.
#[track_caller]
fn guest_mib(container: &Background<'_>) -> u64 {
    let output = container.exec(&["awk", "/MemTotal/ {print $2}", "/proc/meminfo"]);
    output.assert_status(0);
    let text = String::from_utf8(output.stdout).unwrap();
    text.trim().parse::<u64>().unwrap() / 1024
}

/// A small VM whose container has a large place for files in memory.
fn small() -> Bundle {
    sleeper()
        .with(
            "/annotations",
            json!({"io.husk.memory": "192", "io.husk.max-memory": "700"}),
        )
        .mount(json!({
            "destination": "/files", "type": "tmpfs", "source": "tmpfs", "options": ["size=300m"]
        }))
}

#[test]
fn a_vm_grows_with_a_limit_and_its_container_can_use_it() {
    only_husk("runc has no VM");
    let runtime = Runtime::from_environment();
    let container = Background::started(&runtime, small());
    let before = guest_mib(&container);
    assert!(before < 192, "{before} MiB");
    container
        .call(&["update", "--memory", "256m"])
        .assert_prints("");
    assert_limit(&container, "memory.max", "268435456");
    let after = guest_mib(&container);
    assert_eq!(after - before, 128, "{before} MiB, then {after} MiB");
    // More than the VM had at first.
    let fill = "head -c 220m /dev/zero | tr '\\0' x >/files/x; tail -c 3 /files/x; wc -c </files/x";
    container
        .exec(&["sh", "-c", fill])
        .assert_prints("xxx230686720\n");
    container.remove();
}

#[test]
fn a_vm_that_was_not_used_up_shrinks_with_its_limit() {
    only_husk("runc has no VM");
    let runtime = Runtime::from_environment();
    let container = Background::started(&runtime, small());
    let before = guest_mib(&container);
    for limit in ["256m", "512m", "64m"] {
        container
            .call(&["update", "--memory", limit])
            .assert_prints("");
    }
    assert_limit(&container, "memory.max", "67108864");
    assert_eq!(guest_mib(&container), before);
    // Once more, with memory that it had before.
    container
        .call(&["update", "--memory", "256m"])
        .assert_prints("");
    assert_eq!(guest_mib(&container), before + 128);
    container.remove();
}

#[test]
fn more_memory_than_the_vm_can_have_is_refused_with_the_numbers() {
    only_husk("runc has no VM");
    let runtime = Runtime::from_environment();
    let container = Background::started(&runtime, small());
    let before = guest_mib(&container);
    container
        .call(&["update", "--memory", "1g", "--pids-limit", "55"])
        .assert_refused(&["1024 MiB", "1088 MiB", "700 MiB"]);
    assert_limit(&container, "memory.max", "max");
    assert_limit(&container, "pids.max", "max");
    assert_eq!(guest_mib(&container), before);
    container
        .call(&["update", "--cpu-rt-period", "100000"])
        .assert_refused(&["realtime"]);
    container.remove();
}

#[test]
fn vcpus_come_and_go_with_the_quota() {
    only_husk("runc has no VM");
    let runtime = Runtime::from_environment();
    let bundle = sleeper().with("/annotations", json!({"io.husk.max-vcpus": "2"}));
    let container = Background::started(&runtime, bundle);
    let quota = |percent: u32| {
        let quota = (percent * 1000).to_string();
        let words = ["update", "--cpu-period", "100000", "--cpu-quota", &quota];
        container.call(&words).assert_prints("");
    };
    let online = || container.exec(&["cat", "/sys/devices/system/cpu/online"]);
    container.exec(&["nproc"]).assert_prints("1\n");
    for (percent, cpus, count) in [(200, "0-1", "2"), (100, "0", "1"), (150, "0-1", "2")] {
        quota(percent);
        container
            .exec(&["nproc"])
            .assert_prints(&format!("{count}\n"));
        online().assert_prints(&format!("{cpus}\n"));
    }
    // No more than there are.
    quota(900);
    online().assert_prints("0-1\n");
    container.remove();
}
