//! The processes of a container.

use harness::{Background, Bundle, Runtime};

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

/// Of each line the words, but for the columns behind the last of them.
fn words(text: &str, count: usize) -> Vec<Vec<&str>> {
    let lines = text.lines();
    let lines = lines.map(|line| line.split_whitespace().take(count).collect());
    lines.collect()
}

#[test]
fn options_of_ps_choose_what_is_shown() {
    let runtime = Runtime::from_environment();
    let script = "sleep 1000 & renice -n 5 -p $!; until grep -q sleep /proc/$!/comm; do sleep 0.1; done; echo up; wait";
    let mut container = Background::started(&runtime, Bundle::busybox().shell(script));
    container.wait_for("up\n");
    let shown = |options: &[&str]| {
        let output = runtime.call(&[&["ps", &container.id], options].concat());
        output.assert_status(0);
        output.text()
    };
    let text = shown(&["-eo", "pid,ppid,ni,user,stat,comm"]);
    let table = words(&text, 6);
    assert_eq!(table[0], ["PID", "PPID", "NI", "USER", "STAT", "COMMAND"]);
    assert_eq!((table[1][2], table[1][3], table[1][5]), ("0", "root", "sh"));
    assert_eq!((table[2][1], table[2][2]), (table[1][0], "5"), "{text}");
    assert_eq!((table[2][4], table[2][5]), ("SN", "sleep"), "{text}");
    let text = shown(&["aux"]);
    let table = words(&text, 6);
    assert_eq!(table[0], ["USER", "PID", "%CPU", "%MEM", "VSZ", "RSS"]);
    assert!(table[1][5].parse::<u64>().unwrap() > 0, "{text}");
    assert!(text.ends_with("sleep 1000\n"), "{text}");
    assert_eq!(words(&shown(&["-ef"]), 3)[0], ["UID", "PID", "PPID"]);
    let refused = runtime.call(&["ps", &container.id, "-Z!"]);
    assert_ne!(refused.status, 0, "{refused:?}");
    container.remove();
}
