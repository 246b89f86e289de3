//! Limits are changed while a container lives.

use std::io::Write;
use std::process::Stdio;

use harness::{Background, Bundle, Runtime};
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

#[test]
fn more_memory_than_the_vm_has_is_refused_with_the_numbers() {
    if !Runtime::is_husk() {
        return;
    }
    let runtime = Runtime::from_environment();
    let container = Background::started(&runtime, sleeper());
    container
        .call(&["update", "--memory", "1g"])
        .assert_refused(&["1024 MiB", "1088 MiB", "512 MiB"]);
    assert_limit(&container, "memory.max", "max");
    container
        .call(&["update", "--cpu-rt-period", "100000"])
        .assert_refused(&["realtime"]);
    container.remove();
}
