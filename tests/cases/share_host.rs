//! What of the host a VMM is given: file systems that a guest can neither fill nor turn against the host, and nothing that a kernel makes.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use harness::{Bundle, Engine, Runtime, only_husk, wait};
use serde_json::json;

const LOOP: &str = "trap 'exit 5' TERM; echo up; while :; do sleep 0.1; done";

fn run(command: &str, words: &[&str]) {
    let status = Command::new(command).args(words).status().unwrap();
    assert!(status.success(), "{command} {words:?}");
}

/// File systems of the host at paths of their own, unmounted when dropped.
struct Mounts(tempfile::TempDir);

impl Mounts {
    /// One with another one in it.
    fn new() -> Self {
        let mounts = Self(tempfile::tempdir().unwrap());
        mounts.add("", "tmpfs");
        mounts.add("inner", "tmpfs");
        mounts
    }

    fn path(&self, name: &str) -> String {
        self.0.path().join(name).display().to_string()
    }

    fn add(&self, name: &str, kind: &str) {
        fs::create_dir_all(self.path(name)).unwrap();
        run("mount", &["-t", kind, "husk-case", &self.path(name)]);
    }
}

impl Drop for Mounts {
    fn drop(&mut self) {
        run("umount", &["-R", &self.path("")]);
    }
}

/// The share and what is mounted in it, as the VMM sees it: lines of its mount table.
fn share_of(engine: &Engine) -> String {
    let path = format!("/proc/{}/mountinfo", pid_of(engine, "vmm"));
    let table = fs::read_to_string(path).unwrap();
    let point = |line: &str| line.split(' ').nth(4).unwrap().to_owned();
    let container = format!("/{}/", engine.id);
    let lines = table
        .lines()
        .filter(|line| point(line) == "/" || point(line).starts_with(&container));
    lines.map(|line| format!("{line}\n")).collect()
}

fn pid_of(engine: &Engine, role: &str) -> i32 {
    let process = engine.runtime.process(&engine.id, role);
    process.as_raw_nonzero().get()
}

#[test]
fn the_vmms_mounts_have_bounds_and_neither_devices_nor_set_user_ids() {
    only_husk("runc has no share");
    let mounts = Mounts::new();
    let bundle = Bundle::busybox().shell(LOOP).bind(
        Path::new(&mounts.path("")),
        "/data",
        &["rbind", "rslave"],
    );
    let engine = Engine::of(bundle);
    let _process = engine.make(&["run", "--detach"], &[]);
    let table = share_of(&engine);
    assert!(table.lines().count() >= 4, "{table}");
    for line in table.lines() {
        let options: Vec<_> = line.split(' ').nth(5).unwrap().split(',').collect();
        for option in ["nosuid", "nodev"] {
            assert!(options.contains(&option), "{line}");
        }
    }
    let share = table.lines().find(|line| line.contains(" - tmpfs husk "));
    let share = share.unwrap_or_else(|| panic!("{table}"));
    assert!(
        share.contains("size=64k") && share.contains("nr_inodes=16"),
        "{share}"
    );
}

#[test]
fn a_vms_memory_on_the_host_has_a_limit() {
    only_husk("runc has no share");
    let bundle = Bundle::busybox()
        .shell(LOOP)
        .with("/annotations", json!({"io.husk.max-memory": "1024"}));
    let engine = Engine::of(bundle);
    let process = engine.make(&["run", "--detach"], &[]);
    engine.await_output("up\n");
    let cgroup = fs::read_to_string(format!("/proc/{}/cgroup", process.pid())).unwrap();
    let cgroup = cgroup
        .lines()
        .find_map(|line| line.strip_prefix("0::"))
        .unwrap();
    let read = |file: &str| fs::read_to_string(format!("/sys/fs/cgroup{cgroup}/{file}")).unwrap();
    println!("{}{}", read("memory.current"), read("memory.stat"));
    let limit: u64 = read("memory.max").trim().parse().unwrap();
    let (guest, mib) = (1024, 1024 * 1024);
    assert!((guest..guest + 256).contains(&(limit / mib)), "{limit}");
    let current: u64 = read("memory.current").trim().parse().unwrap();
    assert!(current < limit / 2, "{current} of {limit}");
}

#[test]
fn devices_and_set_user_ids_of_an_image_act_in_the_guest() {
    let bundle = Bundle::busybox().shell(
        "echo x >/null && echo written; head -c 2 /zero | wc -c; \
         mknod /made c 1 5 && head -c 3 /made | wc -c; ls -l /made | cut -c 1",
    );
    let node = |name: &str, minor: &str| {
        let path = bundle.rootfs().join(name);
        run("mknod", &[path.to_str().unwrap(), "c", "1", minor]);
    };
    node("null", "3");
    node("zero", "5");
    let bundle = bundle.capabilities(&["CAP_MKNOD"]);
    Runtime::from_environment()
        .run(&bundle)
        .assert_prints("written\n2\n3\nc\n");
    let bundle = Bundle::busybox()
        .probe(env!("CARGO_BIN_EXE_probe"), &["set-user-acts"])
        .with("/process/noNewPrivileges", json!(false))
        .capabilities(&["CAP_CHOWN", "CAP_FSETID", "CAP_SETGID", "CAP_SETUID"]);
    Runtime::from_environment()
        .run(&bundle)
        .assert_prints_part("set-user-acts holds\n");
}

#[test]
fn files_of_the_hosts_kernel_are_refused_by_what_they_are() {
    only_husk("runc has no share");
    let mounts = Mounts::new();
    mounts.add("elsewhere", "proc");
    mounts.add("nodes", "devtmpfs");
    symlink("/sys", mounts.path("link")).unwrap();
    let dotted = format!("{}/../../../../../../proc", mounts.path("inner"));
    for (source, kind) in [
        (mounts.path("elsewhere"), "proc"),
        (mounts.path("elsewhere/self/status"), "proc"),
        (mounts.path("nodes"), "devtmpfs"),
        (mounts.path("link"), "sysfs"),
        (dotted, "proc"),
    ] {
        let bundle = Bundle::busybox().bind(Path::new(&source), "/data", &["bind"]);
        Engine::of(bundle).assert_not_created(&[source.as_str(), "host's kernel", kind]);
    }
}

#[test]
fn files_of_the_hosts_kernel_are_left_out_of_a_folder_and_stay_on_the_host() {
    only_husk("runc has no share");
    let mounts = Mounts::new();
    fs::write(mounts.path("inner/file"), "inner").unwrap();
    mounts.add("inner/elsewhere", "proc");
    let script = "cat /data/inner/file; ls /data/inner/elsewhere | wc -l; \
        ls /host/etc | grep -x passwd; echo up; sleep 1000";
    let root = Path::new("/");
    let bundle = Bundle::busybox()
        .shell(script)
        .bind(Path::new(&mounts.path("")), "/data", &["rbind", "rslave"])
        .bind(root, "/host", &["rbind", "ro"]);
    let engine = Engine::of(bundle);
    let process = engine.make(&["run", "--detach"], &[]);
    engine.await_output("up\n");
    assert_eq!(engine.output(), "inner0\npasswd\nup\n");
    let table = share_of(&engine);
    for kind in ["proc", "sysfs", "devtmpfs", "devpts", "cgroup2"] {
        assert!(!table.contains(&format!(" - {kind} ")), "{table}");
    }
    assert_eq!(table.matches(" - tmpfs husk ").count(), 1, "{table}");
    let log = engine.runtime.log();
    assert!(
        log.contains("are left out of the mount /: ") && log.contains("/proc"),
        "{log}"
    );
    for path in [
        mounts.path("inner/elsewhere/self"),
        "/proc/self".into(),
        "/sys/kernel".into(),
    ] {
        assert!(Path::new(&path).exists(), "{path}");
    }
    engine.call(&["delete", "--force"]).assert_status(0);
    assert_eq!(process.wait(), 137);
    assert!(Path::new("/proc/self").exists());
    assert_eq!(
        fs::read_to_string(mounts.path("inner/file")).unwrap(),
        "inner"
    );
}

#[test]
fn the_host_unmounts_what_it_had_mounted_below_a_volume_once_nobody_uses_it() {
    let mounts = Mounts::new();
    run("mount", &["--make-shared", &mounts.path("")]);
    fs::write(mounts.path("inner/file"), "inner\n").unwrap();
    let script = "exec 3</data/inner/file; cat <&3; trap 'exec 3<&-; echo closed' USR1; \
        while :; do sleep 0.1; done";
    let folder = mounts.path("");
    let bundle =
        Bundle::busybox()
            .shell(script)
            .bind(Path::new(&folder), "/data", &["rbind", "rslave"]);
    let engine = Engine::of(bundle);
    let process = engine.make(&["run", "--detach"], &[]);
    engine.await_output("inner\n");
    let unmounted = || {
        let mut command = Command::new("umount");
        command.arg(mounts.path("inner")).stderr(Stdio::null());
        command.status().unwrap().success()
    };
    assert!(!unmounted(), "a file in it is open");
    let words = ["kill", &engine.id, "USR1"];
    engine.runtime.call(&words).assert_status(0);
    engine.await_output("inner\nclosed\n");
    wait::until("unmounted", unmounted);
    let list = ["exec", &engine.id, "ls", "/data/inner"];
    engine.runtime.call(&list).assert_prints("");
    engine.call(&["delete", "--force"]).assert_status(0);
    assert_eq!(process.wait(), 137);
}

/// A process with a network namespace of its own.
struct Network(Child);

impl Network {
    fn new() -> Self {
        let mut command = Command::new("unshare");
        command.args(["--net", "sh", "-c", "echo; exec sleep 1000"]);
        let mut process = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut line = [0];
        let said = process.stdout.as_mut().unwrap();
        std::io::Read::read_exact(said, &mut line).unwrap();
        Self(process)
    }

    fn path(&self) -> String {
        format!("/proc/{}/ns/net", self.0.id())
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn the_supervisor_stays_in_the_hosts_network() {
    only_husk("runc has no share");
    let network = Network::new();
    let seen = tempfile::NamedTempFile::new().unwrap();
    let script = format!("readlink /proc/self/ns/net >{}", seen.path().display());
    let hook = json!([{"path": "/bin/sh", "args": ["sh", "-c", script]}]);
    let bundle = Bundle::busybox()
        .shell(LOOP)
        .without_namespace("network")
        .namespace(json!({"type": "network", "path": network.path()}))
        .with("/hooks", json!({"createRuntime": hook}));
    let engine = Engine::of(bundle);
    let process = engine.make(&["create"], &[]);
    let link = |path: &str| fs::read_link(path).unwrap().display().to_string();
    let (own, its) = (link("/proc/self/ns/net"), link(&network.path()));
    assert_ne!(own, its);
    assert_eq!(
        link(&format!("/proc/{}/ns/net", pid_of(&engine, "vmm"))),
        its
    );
    assert_eq!(link(&format!("/proc/{}/ns/net", process.pid())), its);
    let tasks = fs::read_dir(format!("/proc/{}/task", process.pid())).unwrap();
    let others: Vec<_> = tasks
        .map(|task| task.unwrap().path())
        .filter(|task| !task.ends_with(process.pid().to_string()))
        .map(|task| link(task.join("ns/net").to_str().unwrap()))
        .collect();
    assert!(!others.is_empty());
    assert!(others.iter().all(|other| *other == own), "{others:?}");
    // The runtime's namespace is where the specification has them run.
    assert_eq!(fs::read_to_string(seen.path()).unwrap().trim(), own);
}
