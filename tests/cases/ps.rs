//! The processes of a container.

use harness::{Background, Bundle, Runtime, only_husk};

const SCRIPT: &str = "sleep 1000 & echo up; wait";

#[test]
fn they_are_listed_as_ps_does() {
    let runtime = Runtime::from_environment();
    let mut container = Background::started(&runtime, Bundle::busybox().shell(SCRIPT));
    container.wait_for("up\n");
    for words in [&["ps"][..], &["ps", "--format", "table"]] {
        let output = container.call(words);
        output.assert_status(0);
        let text = output.text();
        let mut lines = text.lines();
        let header: Vec<_> = lines.next().unwrap().split_whitespace().collect();
        assert_eq!(
            header,
            ["UID", "PID", "PPID", "C", "STIME", "TTY", "TIME", "CMD"]
        );
        let commands: Vec<Vec<_>> = lines
            .map(|line| line.split_whitespace().skip(header.len() - 1).collect())
            .collect();
        assert_eq!(commands[0][..2], ["sh", "-c"], "{text}");
        assert_eq!(commands[1], ["sleep", "1000"], "{text}");
    }
    container.remove();
}

#[test]
fn their_numbers_are_the_hosts() {
    let runtime = Runtime::from_environment();
    let mut container = Background::started(&runtime, Bundle::busybox().shell(SCRIPT));
    container.wait_for("up\n");
    let output = container.call(&["ps", "--format", "json"]);
    output.assert_status(0);
    let pids: Vec<u32> = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(pids.len(), 2);
    assert_eq!(container.state()["pid"], pids[0]);
    for pid in pids {
        let status = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
        assert!(status.contains(&container.id), "{pid} is in {status}");
    }
    container.remove();
}

#[test]
fn a_created_container_has_one_and_a_stopped_one_none() {
    let runtime = Runtime::from_environment();
    let container = Background::created(&runtime, Bundle::busybox());
    let lines = || container.call(&["ps"]).text().lines().count();
    assert_eq!(lines(), 2);
    container.call(&["start"]).assert_status(0);
    container.until_stopped();
    assert_eq!(lines(), 1);
    container.remove();
}

#[test]
fn options_that_only_the_hosts_ps_has_are_refused() {
    only_husk("runc calls the host's ps");
    let runtime = Runtime::from_environment();
    let container = Background::created(&runtime, Bundle::busybox());
    let refused = runtime.call(&["ps", &container.id, "-o", "pid"]);
    refused.assert_refused(&["-o pid", "-ef"]);
    runtime.call(&["ps", &container.id, "-ef"]).assert_status(0);
    container.remove();
}
