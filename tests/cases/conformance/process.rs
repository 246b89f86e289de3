//! The process: arguments, environment, terminal, limits, capabilities, names.

use harness::{Bundle, Runtime, Terminal, only_husk};
use serde_json::json;

use super::{refused, run};

#[test]
fn the_environment_is_passed_as_it_is_and_of_two_values_the_last_counts() {
    let bundle = Bundle::busybox()
        .shell("echo \"$SPACED|$EQUAL|$TWICE\"; echo \"$LINES2\"")
        .with(
            "/process/env",
            json!([
                "PATH=/bin",
                "SPACED= a b ",
                "EQUAL=a=b",
                "TWICE=1",
                "LINES2=one\ntwo",
                "TWICE=2"
            ]),
        );
    run(&bundle).assert_prints(" a b |a=b|2\none\ntwo\n");
}

#[test]
fn arguments_are_passed_as_they_are() {
    let bundle = Bundle::busybox().args(&["printf", "%s|", "", " a b ", "$PATH", "\"", "é\n"]);
    run(&bundle).assert_prints("| a b |$PATH|\"|é\n|");
}

#[test]
fn a_console_size_without_a_terminal_is_ignored() {
    let bundle = Bundle::busybox()
        .shell("tty; test -e /dev/console || echo no console")
        .with("/process/consoleSize", json!({"height": 20, "width": 70}));
    run(&bundle).assert_prints("not a tty\nno console\n");
}

#[test]
fn the_terminal_is_on_all_streams_and_on_the_console() {
    let runtime = Runtime::from_environment();
    let script = "for f in 0 1 2; do readlink /proc/self/fd/$f; done | uniq -c | tr -s ' '; \
                  test -t 0 && test -t 1 && test -t 2 && stat -c %t /dev/console; echo done";
    let bundle = Bundle::busybox()
        .shell(script)
        .with("/process/terminal", json!(true));
    let mut terminal = Terminal::new(80, 24);
    let mut child = runtime.start_in(&bundle, &terminal);
    let shown = terminal.read_until("done\r\n");
    assert!(child.wait().unwrap().success());
    // 0x88: the other ends of pseudo-terminals.
    assert!(shown.contains("\r\n88\r\n"), "{shown}");
}

#[test]
fn limits_are_the_configurations() {
    let bundle = Bundle::busybox()
        .shell(
            "grep -E '^Max (core|data|open|locked|pending|msgqueue)' /proc/self/limits | tr -s ' '",
        )
        .with(
            "/process/rlimits",
            json!([
                {"type": "RLIMIT_CORE", "soft": 0, "hard": 4096},
                {"type": "RLIMIT_DATA", "soft": 1_u64 << 40, "hard": u64::MAX},
                {"type": "RLIMIT_NOFILE", "soft": 100, "hard": 200},
                {"type": "RLIMIT_MEMLOCK", "soft": 8192, "hard": 8192},
                {"type": "RLIMIT_SIGPENDING", "soft": 11, "hard": 12},
                {"type": "RLIMIT_MSGQUEUE", "soft": 13, "hard": 14},
            ]),
        );
    run(&bundle).assert_prints(
        "Max data size 1099511627776 unlimited bytes \nMax core file size 0 4096 bytes \nMax open files 100 200 files \n\
         Max locked memory 8192 8192 bytes \nMax pending signals 11 12 signals \nMax msgqueue size 13 14 bytes \n",
    );
}

#[test]
fn limits_that_are_none_are_refused() {
    let bundle = |limits| Bundle::busybox().with("/process/rlimits", limits);
    let unknown = json!([{"type": "RLIMIT_HUSK", "soft": 1, "hard": 1}]);
    refused(&bundle(unknown), "an unknown limit");
    // runc takes the last of two.
    if Runtime::is_husk() {
        let twice = json!([{"type": "RLIMIT_CORE", "soft": 1, "hard": 1}, {"type": "RLIMIT_CORE", "soft": 2, "hard": 2}]);
        refused(&bundle(twice), "a limit given twice");
    }
}

#[test]
fn a_capability_that_nobody_knows_costs_a_warning() {
    let bundle = Bundle::busybox()
        .args(&["grep", "CapBnd", "/proc/self/status"])
        .capabilities(&["CAP_KILL", "CAP_HUSK"]);
    let runtime = Runtime::from_environment();
    runtime
        .run(&bundle)
        .assert_prints("CapBnd:\t0000000000000020\n");
    assert!(runtime.log().contains("CAP_HUSK"), "{}", runtime.log());
}

#[test]
fn each_set_of_capabilities_is_the_configurations() {
    let bundle = Bundle::busybox()
        .shell("grep ^Cap /proc/self/status | tr -d '\\t'")
        .with("/process/user", json!({"uid": 1000, "gid": 1000}))
        .with(
            "/process/capabilities",
            json!({
                "bounding": ["CAP_CHOWN", "CAP_KILL", "CAP_NET_RAW"],
                "permitted": ["CAP_CHOWN", "CAP_KILL"],
                "inheritable": ["CAP_KILL"],
                "effective": ["CAP_KILL"],
                "ambient": ["CAP_KILL"],
            }),
        );
    run(&bundle).assert_prints(
        "CapInh:0000000000000020\nCapPrm:0000000000000020\nCapEff:0000000000000020\nCapBnd:0000000000002021\n\
         CapAmb:0000000000000020\n",
    );
}

#[test]
fn what_is_not_configured_is_left_as_it_is() {
    let bundle = Bundle::busybox().shell("cat /proc/self/oom_score_adj; umask");
    let own = |file| std::fs::read_to_string(file).unwrap();
    let umask = own("/proc/self/status")
        .lines()
        .find_map(|line| line.strip_prefix("Umask:\t").map(str::to_owned))
        .unwrap();
    // In a VM, of the guest's first process.
    let expected = if Runtime::is_husk() {
        "0\n0022\n".to_owned()
    } else {
        format!("{}{umask}\n", own("/proc/self/oom_score_adj"))
    };
    run(&bundle).assert_prints(&expected);
}

#[test]
fn the_domain_name_is_the_configurations() {
    only_husk("runc 1.1 has no domain name");
    let bundle = Bundle::busybox()
        .args(&["cat", "/proc/sys/kernel/domainname"])
        .with("/domainname", json!("example.org"));
    run(&bundle).assert_prints("example.org\n");
}

#[test]
fn only_the_three_streams_are_open() {
    let bundle = Bundle::busybox()
        .shell("for f in /proc/$$/fd/*; do if test -e $f; then echo ${f##*/}; fi; done");
    run(&bundle).assert_prints("0\n1\n2\n");
}
