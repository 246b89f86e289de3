//! Containers that share a VM, as those of a pod do: annotations, or the namespaces that it names, make one a member of another one's sandbox.

use std::fs;
use std::process::Command;

use harness::{Bundle, Engine, Remains, Runtime, only_husk};
use rustix::process::Signal;
use serde_json::json;

const LOOP: &str = "trap 'echo bye; exit 5' TERM; echo up; while :; do sleep 0.1; done";

/// The kinds of namespaces that the containers of a pod may share, and the kernel's names of their files.
const SHARED: [(&str, &str); 4] = [
    ("network", "net"),
    ("ipc", "ipc"),
    ("uts", "uts"),
    ("pid", "pid"),
];

/// A sandbox of one container that runs.
pub(crate) fn pod() -> Engine {
    let pod = Engine::of(Bundle::busybox().shell(LOOP));
    let _ = pod.make(&["run", "--detach"], &[]);
    pod.await_output("up\n");
    pod
}

/// A bundle whose container is to be in that sandbox.
fn member_of(sandbox: &str, bundle: Bundle) -> Bundle {
    bundle.with(
        "/annotations",
        json!({
            "io.kubernetes.cri-o.ContainerType": "container",
            "io.kubernetes.cri-o.SandboxID": sandbox,
        }),
    )
}

/// A container that is to be in the sandbox of `pod`.
pub(crate) fn member(pod: &Engine, bundle: Bundle) -> Engine {
    Engine::beside(pod, member_of(&pod.id, bundle))
}

/// A bundle whose container shares all that can be shared with the sandbox's own container.
pub(crate) fn companion_of(pod: &Engine, mut bundle: Bundle) -> Bundle {
    let pid = pod.state()["pid"].clone();
    bundle.config["hostname"] = json!("");
    for (kind, file) in SHARED {
        let path = format!("/proc/{pid}/ns/{file}");
        bundle = bundle
            .without_namespace(kind)
            .namespace(json!({"type": kind, "path": path}));
    }
    bundle
}

#[test]
fn a_member_is_in_the_vm_of_its_sandbox_and_has_a_life_of_its_own() {
    let before = Remains::seen();
    let pod = pod();
    let boot = ["cat", "/proc/sys/kernel/random/boot_id"];
    let kernel = pod.runtime.call(&[&["exec", &pod.id][..], &boot].concat());
    let member = member(&pod, Bundle::busybox().shell(LOOP));
    let process = member.make(&["create"], &[]);
    let state = member.state();
    assert_eq!(state["status"], "created");
    assert_eq!(state["pid"], process.pid());
    assert_ne!(state["pid"], pod.state()["pid"]);
    member.start();
    member.await_output("up\n");
    let words = [&["exec", &member.id][..], &boot].concat();
    let seen = member.runtime.call(&words);
    assert_eq!(seen.text(), kernel.text(), "{seen:?}");
    let list = member.runtime.call(&["list", "--quiet"]).text();
    for id in [&pod.id, &member.id] {
        assert!(list.lines().any(|line| line == *id), "{list}");
    }
    member.call(&["kill"]).assert_status(0);
    assert_eq!(process.wait(), 5);
    assert_eq!(member.output(), "up\nbye\n");
    assert_eq!(member.state()["status"], "stopped");
    member.call(&["delete"]).assert_status(0);
    before.assert_nothing_new(&member.id, &member.runtime.root());
    assert_eq!(pod.state()["status"], "running");
    pod.call(&["delete", "--force"]).assert_status(0);
    before.assert_nothing_new(&pod.id, &pod.runtime.root());
}

#[test]
fn namespaces_of_the_sandboxs_containers_can_be_shared() {
    let pod = pod();
    let links = "for n in net ipc uts pid; do readlink /proc/self/ns/$n; done";
    let server = "echo hello | nc -l -p 7000 & sleep 1000";
    let bundle = Bundle::busybox().shell(&format!("{links}; {server}"));
    let companion = member(&pod, companion_of(&pod, bundle));
    let _ = companion.make(&["run", "--detach"], &[]);
    let own = pod.runtime.call(&["exec", &pod.id, "sh", "-c", links]);
    assert_eq!(own.text().lines().count(), 4, "{own:?}");
    companion.await_output(&own.text());
    let client = "until nc 127.0.0.1 7000; do sleep 0.1; done";
    let heard = pod.runtime.call(&["exec", &pod.id, "sh", "-c", client]);
    assert_eq!(heard.text(), "hello\n", "{heard:?}");
    let mounts = ["readlink", "/proc/self/ns/mnt"];
    let of = |id: &str| pod.runtime.call(&[&["exec", id][..], &mounts].concat());
    assert_ne!(of(&pod.id).text(), of(&companion.id).text());
}

#[test]
fn namespaces_of_another_container_are_shared_by_path_alone() {
    let before = Remains::seen();
    let web = pod();
    let inside = "for n in net ipc uts pid; do readlink /proc/self/ns/$n; done; cat /proc/sys/kernel/random/boot_id";
    let own = web.runtime.call(&["exec", &web.id, "sh", "-c", inside]);
    assert_eq!(own.text().lines().count(), 5, "{own:?}");
    // A network namespace may have a name, as `ip netns` gives one.
    let names = tempfile::tempdir().unwrap();
    let name = names.path().join("web");
    fs::write(&name, "").unwrap();
    let of_web = format!("/proc/{}/ns/net", web.state()["pid"]);
    let named = name.to_str().unwrap();
    mount(&["--bind", &of_web, named]);
    let path = json!({"type": "network", "path": named});
    let bundle = Bundle::busybox().shell(&format!("{inside}; {LOOP}"));
    let bundle = companion_of(&web, bundle)
        .without_namespace("network")
        .namespace(path);
    let beside = Engine::beside(&web, bundle);
    let process = beside.make(&["run", "--detach"], &[]);
    beside.await_output(&format!("{}up\n", own.text()));
    assert!(
        Command::new("umount")
            .arg(&name)
            .status()
            .unwrap()
            .success()
    );
    let bundle = companion_of(&beside, Bundle::busybox().shell("exit 3"));
    let third = Engine::beside(&web, bundle);
    let path = third.bundle().path().to_str().unwrap();
    third.call(&["run", "--bundle", path]).assert_status(3);
    // The processes of a pid namespace end with its first one.
    let kill = web.runtime.call(&["kill", &web.id, "KILL"]);
    kill.assert_status(0);
    assert_eq!(process.wait(), 137);
    web.call(&["delete", "--force"]).assert_status(0);
    assert_eq!(beside.state()["status"], "stopped");
    beside.call(&["delete"]).assert_status(0);
    for engine in [&web, &beside, &third] {
        before.assert_nothing_new(&engine.id, &engine.runtime.root());
    }
}

#[test]
fn a_foreground_member_has_its_status_and_leaves_nothing() {
    let pod = pod();
    let before = Remains::seen();
    let bundle = Bundle::busybox().shell("echo out; exit 3");
    let member = member(&pod, bundle);
    let path = member.bundle().path().to_str().unwrap();
    let output = member.call(&["run", "--bundle", path]);
    output.assert_status(3);
    assert_eq!(output.text(), "out\n");
    let missing = member_of(&pod.id, Bundle::busybox().args(&["nonesuch"]));
    missing.write();
    let path = missing.path().to_str().unwrap();
    let output = member.call(&["run", "--bundle", path]);
    // As of a shell; runc has one status for all that fails.
    output.assert_status(if Runtime::is_husk() { 127 } else { 1 });
    assert!(output.errors().contains("nonesuch"), "{output:?}");
    let path = member.bundle().path().to_str().unwrap();
    let kept = member.call(&["run", "--keep", "--bundle", path]);
    kept.assert_status(3);
    assert_eq!(member.state()["status"], "stopped");
    member.call(&["delete"]).assert_status(0);
    before.assert_nothing_new(&member.id, &member.runtime.root());
}

#[test]
fn a_member_ends_with_its_process_and_its_name_is_free() {
    let pod = pod();
    let before = Remains::seen();
    let member = member(&pod, Bundle::busybox().shell(LOOP));
    for _ in 0..2 {
        let process = member.make(&["run", "--detach"], &[]);
        process.signal(Signal::KILL);
        assert_eq!(process.wait(), 137);
        assert_eq!(member.state()["status"], "stopped");
        member.call(&["delete"]).assert_status(0);
    }
    before.assert_nothing_new(&member.id, &member.runtime.root());
    assert_eq!(pod.state()["status"], "running");
}

#[test]
fn what_is_left_of_a_member_is_collected() {
    only_husk("runc has no sandboxes");
    let pod = pod();
    let before = Remains::seen();
    let member = member(&pod, Bundle::busybox().shell(LOOP));
    let process = member.make(&["run", "--detach"], &[]);
    process.signal(Signal::KILL);
    assert_eq!(process.wait(), 137);
    let collected = member.runtime.call(&["gc"]);
    collected.assert_status(0);
    assert!(collected.text().contains(&member.id), "{collected:?}");
    assert!(!collected.text().contains(&pod.id), "{collected:?}");
    before.assert_nothing_new(&member.id, &member.runtime.root());
    let again = member.make(&["run", "--detach"], &[]);
    member.call(&["delete", "--force"]).assert_status(0);
    assert_eq!(again.wait(), 137);
}

#[test]
fn a_member_is_paused_by_itself() {
    let pod = pod();
    let member = member(&pod, Bundle::busybox().shell(LOOP));
    let process = member.make(&["run", "--detach"], &[]);
    member.await_output("up\n");
    member.call(&["pause"]).assert_status(0);
    assert_eq!(member.state()["status"], "paused");
    assert_eq!(pod.state()["status"], "running");
    let output = pod.runtime.call(&["exec", &pod.id, "echo", "runs"]);
    assert_eq!(output.text(), "runs\n", "{output:?}");
    member.call(&["resume"]).assert_status(0);
    member.call(&["kill"]).assert_status(0);
    assert_eq!(process.wait(), 5);
}

fn mount(words: &[&str]) {
    let status = Command::new("mount").args(words).status().unwrap();
    assert!(status.success(), "{words:?}");
}

/// A shared file system of the host with another one in it, unmounted when dropped.
struct Mounts(tempfile::TempDir);

impl Mounts {
    fn new() -> Self {
        let mounts = Self(tempfile::tempdir().unwrap());
        mount(&["-t", "tmpfs", "husk-case", &mounts.path("")]);
        mount(&["--make-shared", &mounts.path("")]);
        mounts.add("early");
        mounts
    }

    fn path(&self, name: &str) -> String {
        self.0.path().join(name).display().to_string()
    }

    fn add(&self, name: &str) {
        fs::create_dir(self.path(name)).unwrap();
        mount(&["-t", "tmpfs", "husk-case", &self.path(name)]);
        fs::write(self.0.path().join(name).join("file"), name).unwrap();
    }
}

impl Drop for Mounts {
    fn drop(&mut self) {
        let _ = Command::new("umount").args(["-R", &self.path("")]).status();
    }
}

#[test]
fn volumes_of_a_member_follow_the_host_which_keeps_its_own() {
    let pod = pod();
    let mounts = Mounts::new();
    let script = "cat /data/early/file; echo new >/data/early/new; touch /kept/x 2>/dev/null || echo refused; \
        until cat /data/late/file 2>/dev/null; do sleep 0.1; done; echo; echo seen; sleep 1000";
    let kept = tempfile::tempdir().unwrap();
    let bundle = Bundle::busybox()
        .shell(script)
        .bind(mounts.0.path(), "/data", &["rbind", "rslave"])
        .bind(kept.path(), "/kept", &["rbind", "ro"]);
    let member = member(&pod, bundle);
    let process = member.make(&["run", "--detach"], &[]);
    member.await_output("earlyrefused\n");
    mounts.add("late");
    member.await_output("late\nseen\n");
    let view = format!("/proc/{}/root", process.pid());
    let written = fs::write(format!("{view}/kept/x"), "").unwrap_err();
    assert_eq!(written.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
    member.call(&["delete", "--force"]).assert_status(0);
    assert_eq!(process.wait(), 137);
    pod.call(&["delete", "--force"]).assert_status(0);
    let seen = |name: &str| fs::read_to_string(mounts.path(name)).unwrap();
    assert_eq!(
        (seen("early/new"), seen("late/file")),
        ("new\n".into(), "late".into())
    );
}

#[test]
fn memory_that_the_engine_binds_at_dev_shm_is_of_its_size_and_shared() {
    let mounts = Mounts::new();
    mount(&["-o", "remount,size=200m,mode=1777", &mounts.path("")]);
    let with_memory = |script: &str| {
        let bundle = Bundle::busybox().shell(script);
        bundle.bind(mounts.0.path(), "/dev/shm", &["rbind", "rw"])
    };
    let script = "df -k /dev/shm | tail -n 1 | awk '{ print $2 }'; dd if=/dev/zero of=/dev/shm/large bs=1M count=80 2>/dev/null; \
        stat -c %s /dev/shm/large; rm /dev/shm/large; echo one >/dev/shm/of-one; until cat /dev/shm/of-two; do sleep 0.1; done; sleep 1000";
    let pod = Engine::of(with_memory(script));
    let _ = pod.make(&["run", "--detach"], &[]);
    pod.await_output("204800\n83886080\n");
    let script =
        "until cat /dev/shm/of-one; do sleep 0.1; done; echo two >/dev/shm/of-two; sleep 1000";
    let member = member(&pod, with_memory(script));
    let _ = member.make(&["run", "--detach"], &[]);
    member.await_output("one\n");
    pod.await_output("two\n");
}

#[test]
fn a_member_ends_with_its_sandbox() {
    only_husk("runc has no sandboxes");
    let before = Remains::seen();
    let pod = pod();
    let member = member(&pod, Bundle::busybox().shell(LOOP));
    let process = member.make(&["run", "--detach"], &[]);
    member.await_output("up\n");
    pod.call(&["delete", "--force"]).assert_status(0);
    assert_eq!(process.wait(), 137);
    assert_eq!(member.state()["status"], "stopped");
    member.call(&["delete"]).assert_status(0);
    before.assert_nothing_new(&member.id, &member.runtime.root());
}

#[test]
fn a_member_whose_supervisor_crashed_has_stopped_and_can_be_deleted() {
    only_husk("runc has no sandboxes");
    let before = Remains::seen();
    let pod = Engine::of(Bundle::busybox().shell(LOOP));
    let supervisor = pod.make(&["run", "--detach"], &[]);
    let bundle = Bundle::busybox().shell(LOOP);
    let member = member(&pod, bundle);
    let process = member.make(&["run", "--detach"], &[]);
    supervisor.signal(Signal::KILL);
    assert_eq!((supervisor.wait(), process.wait()), (137, 137));
    for engine in [&member, &pod] {
        assert_eq!(engine.state()["status"], "stopped");
        engine.call(&["kill"]).assert_refused(&["not running"]);
        engine.call(&["delete"]).assert_status(0);
        before.assert_nothing_new(&engine.id, &engine.runtime.root());
    }
}

#[test]
fn a_members_terminal_has_the_size_of_its_console() {
    let pod = pod();
    let script = "until stty size | grep '31 91'; do sleep 0.1; done; read line; echo \"<$line>\"";
    let bundle = Bundle::busybox().shell(script);
    let bundle = bundle.with("/process/terminal", json!(true));
    let member = member(&pod, bundle);
    let console = member.console();
    let path = console.path.clone();
    let process = member.make(&["create"], &["--console-socket", &path]);
    let mut terminal = console.terminal();
    member.start();
    terminal.resize(91, 31);
    terminal.read_until("31 91\r\n");
    terminal.type_in("hello\r");
    terminal.read_until("<hello>\r\n");
    assert_eq!(process.wait(), 0);
}

#[test]
fn hooks_of_a_member_are_told_its_own_pid() {
    let pod = pod();
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    let hook = |name: &str| {
        let script = format!("cat >>{}", path(name));
        json!([{"path": "/bin/sh", "args": ["sh", "-c", script]}])
    };
    let bundle = Bundle::busybox().shell(LOOP).with(
        "/hooks",
        json!({"createRuntime": hook("create"), "poststop": hook("stop")}),
    );
    let member = member(&pod, bundle);
    let process = member.make(&["run", "--detach"], &[]);
    let told = |name: &str| -> serde_json::Value {
        serde_json::from_slice(&fs::read(path(name)).unwrap()).unwrap()
    };
    // What is not one document would have been written twice.
    assert_eq!(told("create")["pid"], process.pid());
    member.call(&["delete", "--force"]).assert_status(0);
    assert_eq!(told("stop")["status"], "stopped");
    assert_eq!(told("stop")["id"], member.id.as_str());
}

#[test]
fn the_vm_grows_for_a_members_limit() {
    only_husk("runc has no sandboxes");
    let pod = pod();
    let total = [
        "awk",
        "/MemTotal/ { print int($2 / 1024) }",
        "/proc/meminfo",
    ];
    let seen = || -> u64 {
        let output = pod.runtime.call(&[&["exec", &pod.id][..], &total].concat());
        output.text().trim().parse().unwrap()
    };
    let before = seen();
    let limit = json!({"memory": {"limit": 700 * 1024 * 1024}});
    let bundle = Bundle::busybox()
        .shell(LOOP)
        .with("/linux/resources", limit);
    let member = member(&pod, bundle);
    let _ = member.make(&["create"], &[]);
    assert!(
        before < 600 && seen() > 700,
        "{before} MiB, then {}",
        seen()
    );
}

#[test]
fn a_sandbox_that_is_not_there_and_namespaces_of_others_are_refused() {
    only_husk("runc has no sandboxes");
    let before = Remains::seen();
    let lost = Engine::of(member_of("nonesuch", Bundle::busybox()));
    let path = lost.bundle().path().to_str().unwrap();
    let refused = lost.call(&["create", "--bundle", path]);
    refused.assert_refused(&["there is no sandbox nonesuch to be in"]);
    before.assert_nothing_new(&lost.id, &lost.runtime.root());
    let pod = pod();
    let before = Remains::seen();
    let of_init = json!({"type": "ipc", "path": "/proc/1/ns/ipc"});
    let bundle = Bundle::busybox()
        .without_namespace("ipc")
        .namespace(of_init);
    let stranger = member(&pod, bundle);
    let path = stranger.bundle().path().to_str().unwrap();
    let refused = stranger.call(&["create", "--bundle", path]);
    refused.assert_refused(&["/proc/1/ns/ipc", "no running container of its sandbox"]);
    before.assert_nothing_new(&stranger.id, &stranger.runtime.root());
    // Another root is another user's.
    let foreign = Engine::of(companion_of(&pod, Bundle::busybox()));
    let path = foreign.bundle().path().to_str().unwrap();
    let refused = foreign.call(&["create", "--bundle", path]);
    refused.assert_refused(&["no running container below the same root is in it"]);
    before.assert_nothing_new(&foreign.id, &foreign.runtime.root());
}
