//! What Podman and Docker both expect of a runtime. Their own files name the promises.

use std::fs;
use std::io::Write as _;
use std::process::Stdio;

use harness::{CommandLine, Remains, Terminal, wait};

pub(crate) fn status_and_outputs_are_the_containers_and_are_logged(engine: &impl CommandLine) {
    let script = "echo out; echo err >&2; exit 7";
    let output = engine.run(&["--name", "web"], &["sh", "-c", script]);
    output.assert_status(7);
    assert_eq!(output.text(), "out\n");
    assert_eq!(output.errors(), "err\n");
    let logs = engine.call(&["logs", "web"]);
    assert_eq!(
        (logs.text(), logs.errors()),
        (output.text(), output.errors())
    );
    assert_eq!(engine.inspect("web")["State"]["ExitCode"], 7);
}

pub(crate) fn programs_that_cannot_be_executed_have_statuses_of_their_own(
    engine: &impl CommandLine,
) {
    engine.run(&["--rm"], &["nonesuch"]).assert_status(127);
    engine.run(&["--rm"], &["/etc/passwd"]).assert_status(126);
}

pub(crate) fn input_reaches_the_process_and_ends(engine: &impl CommandLine) {
    let words = ["run", "--rm", "--interactive", "--network", "none"];
    let mut command = engine.command(&[&words[..], &["busybox", "cat"]].concat());
    let mut client = command.stdin(Stdio::piped()).spawn().unwrap();
    client.stdin.take().unwrap().write_all(b"typed\n").unwrap();
    let output = client.wait_with_output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "typed\n");
    assert!(output.status.success(), "{output:?}");
}

pub(crate) fn a_terminal_is_the_users(engine: &impl CommandLine) {
    let mut terminal = Terminal::new(91, 31);
    // Docker sets the size when the program runs already.
    let script = "until stty size | grep '31 91'; do sleep 0.1; done; echo ready; read line; \
        echo \"<$line>\"; exit 5";
    let words = ["run", "--rm", "-it", "--network", "none", "busybox"];
    let mut child = engine.call_in(&terminal, &[&words[..], &["sh", "-c", script]].concat());
    terminal.read_until("31 91\r\n");
    terminal.read_until("ready\r\n");
    terminal.type_in("hello\r");
    terminal.read_until("<hello>\r\n");
    assert_eq!(child.wait().unwrap().code(), Some(5));
}

pub(crate) fn an_exec_has_status_output_and_terminal_of_its_own(engine: &impl CommandLine) {
    engine.start("web", &[], &["sleep", "1000"]);
    let output = engine.call(&["exec", "web", "sh", "-c", "echo in; echo bad >&2; exit 3"]);
    output.assert_status(3);
    assert_eq!(
        (output.text(), output.errors()),
        ("in\n".into(), "bad\n".into())
    );
    let mut terminal = Terminal::new(92, 32);
    let script = "read line; until stty size | grep '32 92'; do sleep 0.1; done; exit 6";
    let mut child = engine.call_in(&terminal, &["exec", "-it", "web", "sh", "-c", script]);
    terminal.type_in("go\r");
    terminal.read_until("32 92\r\n");
    assert_eq!(child.wait().unwrap().code(), Some(6));
}

pub(crate) fn stop_asks_first_and_kills_then(engine: &impl CommandLine) {
    let polite = "trap 'echo bye; exit 4' TERM; echo up; while :; do sleep 0.1; done";
    engine.start("polite", &[], &["sh", "-c", polite]);
    engine.await_log("polite", "up\n");
    engine
        .call(&["stop", "--time", "60", "polite"])
        .assert_status(0);
    assert_eq!(engine.inspect("polite")["State"]["ExitCode"], 4);
    assert_eq!(engine.call(&["logs", "polite"]).text(), "up\nbye\n");
    engine.start("stubborn", &[], &["sleep", "1000"]);
    engine
        .call(&["stop", "--time", "1", "stubborn"])
        .assert_status(0);
    assert_eq!(engine.inspect("stubborn")["State"]["ExitCode"], 137);
}

pub(crate) fn removal_by_force_leaves_nothing(engine: &impl CommandLine, force: &[&str]) {
    let before = Remains::seen();
    engine.start("web", &[], &["sleep", "1000"]);
    let id = engine.inspect("web")["Id"].as_str().unwrap().to_owned();
    let root = engine.runtime_root();
    assert!(root.join(&id).exists(), "the state is elsewhere");
    engine
        .call(&[&["rm"], force, &["web"]].concat())
        .assert_status(0);
    before.assert_nothing_new(&id, &root);
}

pub(crate) fn a_container_can_be_started_again(engine: &impl CommandLine) {
    let script = "echo run >>/runs; cat /runs; sleep 1000";
    engine.start("web", &[], &["sh", "-c", script]);
    engine.await_log("web", "run\n");
    engine
        .call(&["restart", "--time", "0", "web"])
        .assert_status(0);
    engine.await_log("web", "run\nrun\nrun\n");
}

pub(crate) fn a_restart_policy_is_kept(engine: &impl CommandLine) {
    let options = ["--restart", "on-failure:1", "--name", "web"];
    let _ = engine.run(&options, &["sh", "-c", "echo again; exit 3"]);
    engine.await_log("web", "again\nagain\n");
}

pub(crate) fn volumes_are_written_or_protected(engine: &impl CommandLine) {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("old"), "old\n").unwrap();
    let volume = |at: &str| format!("{}:{at}", directory.path().display());
    let script = "cat /rw/old; echo new >/rw/new; touch /ro/x 2>/dev/null || echo protected";
    engine
        .run(
            &["-v", &volume("/rw"), "-v", &volume("/ro:ro")],
            &["sh", "-c", script],
        )
        .assert_prints("old\nprotected\n");
    let new = fs::read_to_string(directory.path().join("new")).unwrap();
    assert_eq!(new, "new\n");
}

pub(crate) fn copies_are_of_the_containers_files(engine: &impl CommandLine) {
    let directory = tempfile::tempdir().unwrap();
    let volume = directory.path().join("volume");
    fs::create_dir(&volume).unwrap();
    let bind = format!("{}:/volume", volume.display());
    engine.start("web", &["-v", &bind], &["sleep", "1000"]);
    let file = directory.path().join("file");
    let path = file.to_str().unwrap();
    engine
        .call(&["cp", "web:/etc/passwd", path])
        .assert_status(0);
    let passwd = fs::read_to_string(&file).unwrap();
    assert_eq!(passwd, "root:x:0:0:root:/root:/bin/sh\n");
    engine
        .call(&["cp", path, "web:/etc/husk-case"])
        .assert_status(0);
    engine
        .call(&["cp", path, "web:/volume/copy"])
        .assert_status(0);
    engine
        .call(&["exec", "web", "sh", "-c", "echo made >/made"])
        .assert_status(0);
    engine.call(&["cp", "web:/made", path]).assert_status(0);
    assert_eq!(fs::read_to_string(&file).unwrap(), "made\n");
    assert!(!fs::exists("/etc/husk-case").unwrap(), "the host has it");
    assert_eq!(fs::read_to_string(volume.join("copy")).unwrap(), passwd);
    engine
        .call(&["exec", "web", "cat", "/etc/husk-case", "/volume/copy"])
        .assert_prints(&passwd.repeat(2));
}

pub(crate) fn limits_user_and_names_are_inside(engine: &impl CommandLine) {
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
    engine
        .run(&options, &["sh", "-c", script])
        .assert_prints("5\n6\n134217728\n50000 100000\n50\nnamed\nb /bin\nprotected\n");
}

pub(crate) fn namespaces_of_another_container_are_shared(engine: &impl CommandLine) {
    let seen = "for n in pid ipc net; do readlink /proc/self/ns/$n; done; cat /proc/sys/kernel/random/boot_id";
    let server = "echo shared >/dev/shm/file; echo ready; echo hello | nc -l -p 7000; sleep 1000";
    let script = format!("{seen}; {server}");
    engine.start("web", &["--ipc", "shareable"], &["sh", "-c", &script]);
    let logged = || engine.call(&["logs", "web"]).text();
    wait::until("web is ready", || logged().ends_with("ready\n"));
    let shared = [
        "--pid",
        "container:web",
        "--ipc",
        "container:web",
        "--network",
        "container:web",
    ];
    let client = "until nc 127.0.0.1 7000; do sleep 0.1; done; cat /dev/shm/file; exit 4";
    let script = format!("{seen}; {client}");
    let words = [&["run"][..], &shared, &["busybox", "sh", "-c", &script]].concat();
    let output = engine.call(&words);
    output.assert_status(4);
    let expected = logged().replace("ready\n", "hello\nshared\n");
    assert_eq!(output.text(), expected, "{output:?}");
}
