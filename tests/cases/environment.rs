//! What a process starts with: environment, directory, user, groups, umask, limits.

use harness::{Background, Bundle, Runtime};
use serde_json::json;

fn run(bundle: &Bundle) -> harness::Output {
    Runtime::from_environment().run(bundle)
}

/// What `env` prints in it, sorted; without HOME, which the runtime may add.
fn variables(bundle: &Bundle) -> Vec<String> {
    let output = run(bundle);
    output.assert_status(0);
    let text = output.text();
    let lines = text.lines().filter(|line| !line.starts_with("HOME="));
    let mut lines: Vec<_> = lines.map(String::from).collect();
    lines.sort_unstable();
    lines
}

#[test]
fn variables_are_those_of_the_configuration() {
    let bundle = Bundle::busybox().args(&["env"]).with(
        "/process/env",
        json!(["PATH=/bin", "COLOUR=a green one", "EMPTY="]),
    );
    assert_eq!(
        variables(&bundle),
        ["COLOUR=a green one", "EMPTY=", "PATH=/bin"]
    );
}

#[test]
fn the_last_value_of_a_variable_counts_and_is_passed_once() {
    let bundle = Bundle::busybox().args(&["env"]).with(
        "/process/env",
        json!(["PATH=/none", "COLOUR=red", "COLOUR=blue", "PATH=/bin"]),
    );
    assert_eq!(variables(&bundle), ["COLOUR=blue", "PATH=/bin"]);
}

/// A user table as an image has it.
fn with_users(bundle: Bundle) -> Bundle {
    let table = "root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000:u:/home/user:/bin/sh\n";
    std::fs::write(bundle.rootfs().join("etc/passwd"), table).unwrap();
    bundle
}

#[test]
fn home_without_a_value_is_the_users() {
    let bundle = with_users(Bundle::busybox().args(&["env"]))
        .with("/process/env", json!(["PATH=/bin", "HOME="]))
        .with("/process/user", json!({"uid": 1000, "gid": 1000}));
    let text = run(&bundle).text();
    let homes: Vec<_> = text
        .lines()
        .filter(|line| line.starts_with("HOME="))
        .collect();
    assert_eq!(homes, ["HOME=/home/user"], "{text}");
}

#[test]
fn home_and_variables_of_an_exec_are_its_own() {
    let bundle = with_users(Bundle::busybox().args(&["sleep", "1000"]))
        .with("/process/env", json!(["PATH=/bin", "COLOUR=red"]))
        .with("/process/user", json!({"uid": 1000, "gid": 1000}));
    let runtime = Runtime::from_environment();
    let container = Background::started(&runtime, bundle);
    let exec = |options: &[&str], shown: &str| {
        let words = [&["exec"], options, &[&container.id, "sh", "-c", shown]].concat();
        runtime.call(&words)
    };
    exec(&[], "echo $HOME").assert_prints("/home/user\n");
    exec(&["--user", "0:0"], "echo $HOME").assert_prints("/root\n");
    exec(&["--user", "4242"], "echo $HOME").assert_prints("/\n");
    exec(&["--env", "HOME=/there"], "echo $HOME").assert_prints("/there\n");
    let colours = "env | grep COLOUR";
    exec(&["--env", "COLOUR=blue"], colours).assert_prints("COLOUR=blue\n");
    container.remove();
}

#[test]
fn a_process_without_a_user_is_roots() {
    let mut bundle = Bundle::busybox().args(&["id", "-u"]);
    bundle.config["process"]
        .as_object_mut()
        .unwrap()
        .remove("user");
    run(&bundle).assert_prints("0\n");
}

#[test]
fn an_exec_from_a_file_needs_no_user_either() {
    let runtime = Runtime::from_environment();
    let container = Background::started(&runtime, Bundle::busybox().args(&["sleep", "1000"]));
    let file = tempfile::NamedTempFile::new().unwrap();
    let process = json!({"args": ["id", "-u"], "cwd": "/", "env": ["PATH=/bin"]});
    std::fs::write(file.path(), process.to_string()).unwrap();
    let path = file.path().to_str().unwrap();
    runtime
        .call(&["exec", "--process", path, &container.id])
        .assert_prints("0\n");
    container.remove();
}

#[test]
fn working_directory() {
    let bundle = Bundle::busybox()
        .args(&["pwd"])
        .with("/process/cwd", json!("/etc"));
    run(&bundle).assert_prints("/etc\n");
}

#[test]
fn working_directory_is_made_when_missing() {
    let bundle = Bundle::busybox()
        .args(&["pwd"])
        .with("/process/cwd", json!("/srv/data"));
    run(&bundle).assert_prints("/srv/data\n");
}

#[test]
fn user_and_groups() {
    let bundle = Bundle::busybox()
        .shell("id -u; id -g; id -G; cat /proc/self/status | grep -E '^(Uid|Gid)'")
        .with(
            "/process/user",
            json!({"uid": 1000, "gid": 1001, "additionalGids": [5, 2000]}),
        );
    run(&bundle).assert_prints(
        "1000\n1001\n1001 5 2000\nUid:\t1000\t1000\t1000\t1000\nGid:\t1001\t1001\t1001\t1001\n",
    );
}

#[test]
fn umask() {
    let bundle = Bundle::busybox()
        .args(&["sh", "-c", "umask; touch /tmp/f; stat -c %a /tmp/f"])
        .with("/process/user/umask", json!(0o027));
    run(&bundle).assert_prints("0027\n640\n");
}

#[test]
fn resource_limits() {
    let bundle = Bundle::busybox().shell("ulimit -S -n; ulimit -H -n").with(
        "/process/rlimits",
        json!([{"type": "RLIMIT_NOFILE", "soft": 123, "hard": 456}]),
    );
    run(&bundle).assert_prints("123\n456\n");
}

#[test]
fn host_name() {
    let bundle = Bundle::busybox()
        .args(&["hostname"])
        .with("/hostname", json!("some-name"));
    run(&bundle).assert_prints("some-name\n");
}

#[test]
fn system_controls() {
    let bundle = Bundle::busybox()
        .args(&["cat", "/proc/sys/kernel/msgmax"])
        .with("/linux/sysctl", json!({"kernel.msgmax": "65536"}));
    run(&bundle).assert_prints("65536\n");
}

#[test]
fn score_for_the_memory_killer() {
    let bundle = Bundle::busybox()
        .args(&["cat", "/proc/self/oom_score_adj"])
        .with("/process/oomScoreAdj", json!(321));
    run(&bundle).assert_prints("321\n");
}

#[test]
fn program_is_looked_for_in_the_path_of_the_configuration() {
    let bundle = Bundle::busybox()
        .args(&["mine"])
        .with("/process/env", json!(["PATH=/opt:/bin"]));
    let directory = bundle.rootfs().join("opt");
    std::fs::create_dir(&directory).unwrap();
    std::os::unix::fs::symlink("/bin/busybox", directory.join("mine")).unwrap();
    let output = run(&bundle);
    assert!(output.errors().contains("applet not found"), "{output:?}");
    output.assert_status(127);
}
