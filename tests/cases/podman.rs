//! Podman finds what it expects of a runtime.

use std::fs;

use harness::{Podman, Remains, Terminal};

#[test]
fn status_and_outputs_are_the_containers_and_are_logged() {
    let podman = Podman::with_busybox();
    let script = "echo out; echo err >&2; exit 7";
    let output = podman.run(&["--name", "a"], &["sh", "-c", script]);
    output.assert_status(7);
    assert_eq!(output.text(), "out\n");
    assert_eq!(output.errors(), "err\n");
    let logs = podman.call(&["logs", "a"]);
    assert_eq!(
        (logs.text(), logs.errors()),
        (output.text(), output.errors())
    );
    assert_eq!(podman.inspect("a")["State"]["ExitCode"], 7);
}

#[test]
fn programs_that_cannot_be_executed_have_podmans_statuses() {
    let podman = Podman::with_busybox();
    podman.run(&["--rm"], &["nonesuch"]).assert_status(127);
    podman.run(&["--rm"], &["/etc/passwd"]).assert_status(126);
}

#[test]
fn a_terminal_is_the_users() {
    let podman = Podman::with_busybox();
    let mut terminal = Terminal::new(91, 31);
    let script = "stty size; echo ready; read line; echo \"<$line>\"; exit 5";
    let words = ["run", "--rm", "-it", "--network", "none", "busybox"];
    let mut child = podman.call_in(&terminal, &[&words[..], &["sh", "-c", script]].concat());
    terminal.read_until("31 91\r\n");
    terminal.read_until("ready\r\n");
    terminal.type_in("hello\r");
    terminal.read_until("<hello>\r\n");
    assert_eq!(child.wait().unwrap().code(), Some(5));
}

#[test]
fn an_exec_has_status_output_and_terminal_of_its_own() {
    let podman = Podman::with_busybox();
    podman.start("a", &[], &["sleep", "1000"]);
    let output = podman.call(&["exec", "a", "sh", "-c", "echo in; echo bad >&2; exit 3"]);
    output.assert_status(3);
    assert_eq!(
        (output.text(), output.errors()),
        ("in\n".into(), "bad\n".into())
    );
    let mut terminal = Terminal::new(92, 32);
    let script = "read line; until stty size | grep '32 92'; do sleep 0.1; done; exit 6";
    let mut child = podman.call_in(&terminal, &["exec", "-it", "a", "sh", "-c", script]);
    terminal.type_in("go\r");
    terminal.read_until("32 92\r\n");
    assert_eq!(child.wait().unwrap().code(), Some(6));
    podman.call(&["exec", "a", "nonesuch"]).assert_status(127);
}

#[test]
fn stop_asks_first_and_kills_then() {
    let podman = Podman::with_busybox();
    let polite = "trap 'echo bye; exit 4' TERM; echo up; while :; do sleep 0.1; done";
    podman.start("polite", &[], &["sh", "-c", polite]);
    await_log(&podman, "polite", "up\n");
    podman
        .call(&["stop", "--time", "60", "polite"])
        .assert_status(0);
    assert_eq!(podman.inspect("polite")["State"]["ExitCode"], 4);
    assert_eq!(podman.call(&["logs", "polite"]).text(), "up\nbye\n");
    podman.start("stubborn", &[], &["sleep", "1000"]);
    podman
        .call(&["stop", "--time", "1", "stubborn"])
        .assert_status(0);
    assert_eq!(podman.inspect("stubborn")["State"]["ExitCode"], 137);
}

#[test]
fn removal_by_force_leaves_nothing() {
    let podman = Podman::with_busybox();
    let before = Remains::seen();
    podman.start("a", &[], &["sleep", "1000"]);
    let id = podman.inspect("a")["Id"].as_str().unwrap().to_owned();
    podman
        .call(&["rm", "--force", "--time", "0", "a"])
        .assert_status(0);
    before.assert_nothing_new(&id, &podman.runtime_root());
}

#[test]
fn a_container_can_be_started_again() {
    let podman = Podman::with_busybox();
    let script = "echo run >>/runs; cat /runs; sleep 1000";
    podman.start("a", &[], &["sh", "-c", script]);
    await_log(&podman, "a", "run\n");
    podman
        .call(&["restart", "--time", "0", "a"])
        .assert_status(0);
    await_log(&podman, "a", "run\nrun\nrun\n");
}

#[test]
fn a_restart_policy_is_kept() {
    let podman = Podman::with_busybox();
    let options = ["--restart", "on-failure:1", "--name", "a"];
    let _ = podman.run(&options, &["sh", "-c", "echo again; exit 3"]);
    await_log(&podman, "a", "again\nagain\n");
}

#[test]
fn volumes_are_written_or_protected() {
    let podman = Podman::with_busybox();
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("old"), "old\n").unwrap();
    let volume = |at: &str| format!("{}:{at}", directory.path().display());
    let script = "cat /rw/old; echo new >/rw/new; touch /ro/x 2>/dev/null || echo protected";
    podman
        .run(
            &["-v", &volume("/rw"), "-v", &volume("/ro:ro")],
            &["sh", "-c", script],
        )
        .assert_prints("old\nprotected\n");
    let new = fs::read_to_string(directory.path().join("new")).unwrap();
    assert_eq!(new, "new\n");
}

#[test]
fn copies_are_of_the_containers_files() {
    let podman = Podman::with_busybox();
    let directory = tempfile::tempdir().unwrap();
    let volume = directory.path().join("volume");
    fs::create_dir(&volume).unwrap();
    let bind = format!("{}:/volume", volume.display());
    podman.start("a", &["-v", &bind], &["sleep", "1000"]);
    let file = directory.path().join("file");
    let path = file.to_str().unwrap();
    podman.call(&["cp", "a:/etc/passwd", path]).assert_status(0);
    let passwd = fs::read_to_string(&file).unwrap();
    assert_eq!(passwd, "root:x:0:0:root:/root:/bin/sh\n");
    podman
        .call(&["cp", path, "a:/etc/husk-case"])
        .assert_status(0);
    podman
        .call(&["cp", path, "a:/volume/copy"])
        .assert_status(0);
    assert!(!fs::exists("/etc/husk-case").unwrap(), "the host has it");
    assert_eq!(fs::read_to_string(volume.join("copy")).unwrap(), passwd);
    podman
        .call(&["exec", "a", "cat", "/etc/husk-case", "/volume/copy"])
        .assert_prints(&passwd.repeat(2));
}

#[test]
fn limits_user_and_names_are_inside() {
    let podman = Podman::with_busybox();
    let options = [
        "--memory",
        "128m",
        "--cpus",
        "0.5",
        "--pids-limit",
        "50",
        "--user",
        "5:6",
        "--hostname",
        "named",
        "--env",
        "A=b",
        "--workdir",
        "/bin",
        "--read-only",
    ];
    let script = "id -u; id -g; cd /sys/fs/cgroup; cat memory.max cpu.max pids.max; \
        hostname; echo $A $OLDPWD; touch /x 2>/dev/null || echo protected";
    podman
        .run(&options, &["sh", "-c", script])
        .assert_prints("5\n6\n134217728\n50000 100000\n50\nnamed\nb /bin\nprotected\n");
}

#[test]
fn health_and_figures_are_the_containers() {
    let podman = Podman::with_busybox();
    let options = [
        "--health-cmd",
        "test -e /ill || true; test ! -e /ill",
        "--health-interval",
        "disable",
    ];
    podman.start("a", &options, &["sleep", "1000"]);
    podman.call(&["healthcheck", "run", "a"]).assert_status(0);
    podman
        .call(&["exec", "a", "touch", "/ill"])
        .assert_status(0);
    podman.call(&["healthcheck", "run", "a"]).assert_status(1);
    let format = "{{.PIDs}} {{.MemUsage}}";
    let stats = podman.call(&["stats", "--no-stream", "--format", format, "a"]);
    stats.assert_status(0);
    assert!(!stats.text().starts_with('0'), "{stats:?}");
    assert!(!stats.text().contains(" 0B /"), "{stats:?}");
}

/// Waits until a container has printed exactly this: what follows its log ends with it.
fn await_log(podman: &Podman, name: &str, text: &str) {
    for _ in 0..1000 {
        if podman.call(&["logs", name]).text() == text {
            return;
        }
    }
    panic!(
        "{name} never printed {text:?}: {:?}",
        podman.call(&["logs", name])
    );
}
