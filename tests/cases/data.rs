//! What is the host's stays the host's, whatever ends a container: files behind its mounts, and state that is not its own.

use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use harness::{Adopted, Bundle, Engine, Output, Remains, Runtime, only_husk};
use rustix::process::Signal;
use serde_json::json;

const LOOP: &str = "trap 'exit 5' TERM; echo up; while :; do sleep 0.1; done";

/// A folder of the host with file systems mounted on it, one upon the other, each with a file in it.
struct Stack {
    folder: tempfile::TempDir,
    /// What is mounted on it, by the names of their files.
    names: Vec<&'static str>,
}

impl Stack {
    /// Mounts on it are seen where it was bound before.
    fn new() -> Self {
        let mut stack = Self {
            folder: tempfile::tempdir().unwrap(),
            names: Vec::new(),
        };
        stack.add("base");
        mount(&["--make-shared", &stack.path()]);
        stack
    }

    fn path(&self) -> String {
        self.folder.path().display().to_string()
    }

    fn add(&mut self, name: &'static str) {
        mount(&["-t", "tmpfs", "husk-case", &self.path()]);
        let folder = self.folder.path().join("folder");
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join(name), name).unwrap();
        self.names.push(name);
    }

    /// Takes the mounts off and finds all files.
    fn assert_whole(mut self) {
        while let Some(name) = self.names.pop() {
            let file = self.folder.path().join("folder").join(name);
            assert_eq!(fs::read_to_string(&file).unwrap_or_default(), name);
            umount(&self.path());
        }
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        for _ in &self.names {
            umount(&self.path());
        }
    }
}

fn mount(words: &[&str]) {
    let status = Command::new("mount").args(words).status().unwrap();
    assert!(status.success(), "{words:?}");
}

fn umount(path: &str) {
    let status = Command::new("umount").arg(path).status().unwrap();
    assert!(status.success(), "{path}");
}

/// A container with the folder as its volume, on which more is mounted while it runs.
fn running_on(stack: &mut Stack, propagation: &str) -> (Engine, Adopted) {
    let engine = Engine::of(Bundle::busybox().shell(LOOP).bind(
        Path::new(&stack.path()),
        "/data",
        &["rbind", propagation],
    ));
    let process = engine.make(&["run", "--detach"], &[]);
    engine.await_output("up\n");
    stack.add("first");
    stack.add("second");
    (engine, process)
}

/// The container is ended; what was mounted on its volume is whole.
fn kept_by(propagation: &str, end: impl FnOnce(&Engine, Adopted)) {
    let before = Remains::seen();
    let mut stack = Stack::new();
    let (engine, process) = running_on(&mut stack, propagation);
    end(&engine, process);
    before.assert_nothing_new(&engine.id, &engine.runtime.root());
    stack.assert_whole();
}

#[test]
fn mounts_on_a_volume_outlive_its_end_and_delete() {
    kept_by("rslave", |engine, process| {
        engine.call(&["kill"]).assert_status(0);
        assert_eq!(process.wait(), 5);
        engine.call(&["delete"]).assert_status(0);
    });
}

#[test]
fn mounts_on_a_volume_outlive_a_forced_delete() {
    kept_by("rshared", |engine, process| {
        engine.call(&["delete", "--force"]).assert_status(0);
        assert_eq!(process.wait(), 137);
    });
}

#[test]
fn mounts_on_a_volume_outlive_a_crash_and_delete() {
    kept_by("rshared", |engine, process| {
        process.signal(Signal::KILL);
        assert_eq!(process.wait(), 137);
        engine.call(&["delete"]).assert_status(0);
    });
}

#[test]
fn mounts_on_a_volume_outlive_a_crash_and_a_collection() {
    only_husk("it is about what husk keeps on the host");
    kept_by("rslave", |engine, process| {
        process.signal(Signal::KILL);
        assert_eq!(process.wait(), 137);
        let collected = engine.runtime.call(&["gc"]);
        collected.assert_prints_part(&engine.id);
    });
}

#[test]
fn mounts_on_a_volume_outlive_a_run_in_the_foreground() {
    let mut stack = Stack::new();
    let runtime = Runtime::from_environment();
    let bundle = Bundle::busybox().shell("echo up; cat").bind(
        Path::new(&stack.path()),
        "/data",
        &["rbind", "rslave"],
    );
    let mut running = runtime.start(&bundle);
    running.wait_for("up\n");
    stack.add("first");
    stack.add("second");
    running.wait().assert_status(0);
    stack.assert_whole();
}

/// A call with a root that is reached through a link.
fn through(link: &Path, words: &[&str]) -> Output {
    let mut command = Command::new(Runtime::from_environment().executable());
    command.arg("--root").arg(link).args(words);
    command.stdin(Stdio::null());
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    Output::of(command)
}

#[test]
fn what_others_mounted_in_a_state_directory_is_theirs() {
    only_husk("it is about what husk keeps on the host");
    let engine = Engine::of(Bundle::busybox().shell(LOOP));
    let process = engine.make(&["run", "--detach"], &[]);
    process.signal(Signal::KILL);
    assert_eq!(process.wait(), 137);
    let link = engine.path("link");
    symlink(engine.runtime.root(), &link).unwrap();
    let place = engine.runtime.root().join(&engine.id).join("shared");
    mount(&["-t", "tmpfs", "husk-case", place.to_str().unwrap()]);
    let handle = fs::File::open(&place).unwrap();
    fs::write(place.join("file"), "kept").unwrap();
    let deleted = through(&link, &["delete", &engine.id]);
    let path = format!("/proc/self/fd/{}/file", handle.as_raw_fd());
    assert_eq!(fs::read_to_string(path).unwrap(), "kept", "{deleted:?}");
    assert!(deleted.errors().contains("is left"), "{deleted:?}");
    // The name is free again.
    let again = engine.make(&["run", "--detach"], &[]);
    engine.call(&["delete", "--force"]).assert_status(0);
    assert_eq!(again.wait(), 137);
    let left: Vec<_> = fs::read_dir(engine.runtime.root())
        .unwrap()
        .flatten()
        .collect();
    assert_eq!(left.len(), 1, "{left:?}");
    drop(handle);
    umount(left[0].path().join("shared").to_str().unwrap());
    let collected = engine.runtime.call(&["gc"]);
    collected.assert_prints_part("removed");
    assert_eq!(fs::read_dir(engine.runtime.root()).unwrap().count(), 0);
}

/// A process that no container has to do with, in a cgroup of its own.
struct Stranger {
    cgroup: PathBuf,
    process: Child,
}

impl Stranger {
    fn new(name: &str) -> Self {
        let cgroup = Path::new("/sys/fs/cgroup").join(name);
        fs::create_dir_all(&cgroup).unwrap();
        let process = Command::new("sleep").arg("1000").spawn().unwrap();
        fs::write(cgroup.join("cgroup.procs"), process.id().to_string()).unwrap();
        Self { cgroup, process }
    }

    #[track_caller]
    fn assert_alive(&mut self) {
        assert!(self.process.try_wait().unwrap().is_none());
        let members = fs::read_to_string(self.cgroup.join("cgroup.procs")).unwrap();
        assert_eq!(members.trim(), self.process.id().to_string());
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = fs::remove_dir(&self.cgroup);
    }
}

fn in_cgroup(name: &str, shell: &str) -> Engine {
    Engine::of(
        Bundle::busybox()
            .shell(shell)
            .with("/linux/cgroupsPath", json!(format!("/{name}"))),
    )
}

#[test]
fn a_cgroup_of_others_is_refused_and_nobody_in_it_is_killed() {
    // What runc makes of it depends on its version.
    only_husk("it is about what husk keeps on the host");
    let before = Remains::seen();
    let name = format!("{}-others", Runtime::new_id());
    let mut stranger = Stranger::new(&name);
    let refused = |name: &str| {
        let engine = in_cgroup(name, LOOP);
        engine.assert_not_created(&["cgroup", name, "not this container's"]);
        engine.call(&["delete", "--force"]).assert_status(0);
        engine.runtime.call(&["gc"]).assert_prints("");
        before.assert_nothing_new(&engine.id, &engine.runtime.root());
    };
    refused(&name);
    stranger.assert_alive();
    // One with others below it, as a slice has.
    let inner = format!("{name}-slice/inner");
    let mut inner = Stranger::new(&inner);
    refused(&format!("{name}-slice"));
    inner.assert_alive();
    let slice = inner.cgroup.parent().unwrap().to_owned();
    drop(inner);
    fs::remove_dir(slice).unwrap();
}

#[test]
fn a_cgroup_made_since_the_end_is_somebody_elses() {
    // runc's is there until its delete.
    only_husk("it is about what husk keeps on the host");
    let name = format!("{}-since", Runtime::new_id());
    let engine = in_cgroup(&name, "exit 3");
    let process = engine.make(&["run", "--detach"], &[]);
    assert_eq!(process.wait(), 3);
    let mut stranger = Stranger::new(&name);
    engine.runtime.call(&["gc"]).assert_prints("");
    stranger.assert_alive();
    engine.call(&["delete"]).assert_status(0);
    stranger.assert_alive();
}

/// A crash, then its cgroup is replaced by somebody else's.
fn replaced_after_a_crash(clean: impl FnOnce(&Engine)) {
    only_husk("it is about what husk keeps on the host");
    let name = format!("{}-crash", Runtime::new_id());
    let engine = in_cgroup(&name, LOOP);
    let process = engine.make(&["run", "--detach"], &[]);
    process.signal(Signal::KILL);
    assert_eq!(process.wait(), 137);
    let cgroup = Path::new("/sys/fs/cgroup").join(&name);
    // The VMM ends by itself.
    while fs::remove_dir(&cgroup).is_err() {
        std::thread::yield_now();
    }
    let mut stranger = Stranger::new(&name);
    clean(&engine);
    stranger.assert_alive();
    assert!(!engine.runtime.root().join(&engine.id).exists());
}

#[test]
fn a_cgroup_replaced_after_a_crash_outlives_the_delete() {
    replaced_after_a_crash(|engine| {
        engine.call(&["delete", "--force"]).assert_status(0);
    });
}

#[test]
fn a_cgroup_replaced_after_a_crash_outlives_a_collection() {
    replaced_after_a_crash(|engine| {
        engine.runtime.call(&["gc"]).assert_prints_part(&engine.id);
    });
}

#[test]
fn two_roots_may_have_the_same_name() {
    only_husk("it is about what husk keeps on the host");
    let first = Engine::of(Bundle::busybox().shell(LOOP));
    let second = Engine::named(&first.id, Bundle::busybox().shell(LOOP));
    let before = Remains::seen();
    let first_process = first.make(&["run", "--detach"], &[]);
    let second_process = second.make(&["run", "--detach"], &[]);
    second_process.signal(Signal::KILL);
    assert_eq!(second_process.wait(), 137);
    second.runtime.call(&["gc"]).assert_prints_part("removed");
    assert_eq!(first.state()["status"], "running");
    let output = first.runtime.call(&["exec", &first.id, "echo", "well"]);
    output.assert_prints("well\n");
    first.call(&["delete", "--force"]).assert_status(0);
    assert_eq!(first_process.wait(), 137);
    before.assert_nothing_new(&first.id, &first.runtime.root());
}

/// Creates, forced deletes and collections of one id, all at once: what one create has made, no delete meant for another takes away.
#[test]
fn create_beside_delete_beside_collection_of_one_name() {
    const ROUNDS: usize = 4;
    let before = Remains::seen();
    let engine = Engine::of(Bundle::busybox().shell(LOOP));
    let bundle = engine.bundle().path().to_str().unwrap().to_owned();
    for _ in 0..ROUNDS {
        let words: [&[&str]; 5] = [
            &["create", "--bundle", &bundle, &engine.id],
            &["delete", "--force", &engine.id],
            &["create", "--bundle", &bundle, &engine.id],
            &["delete", "--force", &engine.id],
            &["delete", "--force", &engine.id],
        ];
        let mut calls: Vec<Child> = words
            .iter()
            .map(|words| engine.command(words).spawn().unwrap())
            .collect();
        if Runtime::is_husk() {
            calls.push(engine.command(&["gc"]).spawn().unwrap());
        }
        for mut call in calls {
            call.wait().unwrap();
        }
        // Whoever was last: it is there and can be removed, or it is not there.
        engine.call(&["delete", "--force"]).assert_status(0);
        before.assert_nothing_new(&engine.id, &engine.runtime.root());
    }
    let process = engine.make(&["run", "--detach"], &[]);
    engine.call(&["delete", "--force"]).assert_status(0);
    assert_eq!(process.wait(), 137);
    before.assert_nothing_new(&engine.id, &engine.runtime.root());
}
