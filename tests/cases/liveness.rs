//! A file system that never answers holds up nobody but who needs it.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::path::Path;
use std::process::{Child, Command};

use harness::{Bundle, Engine, Remains, Runtime, only_husk};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::mount::{MountFlags, UnmountFlags};
use serde_json::json;
use tempfile::TempDir;

const LOOP: &str = "trap 'echo bye; exit 5' TERM; echo up; while :; do sleep 0.1; done";

/// A FUSE file system whose server, this process, answers what it has been told to and then never again. Its requests fail when it is dropped.
struct Mute {
    directory: TempDir,
    /// None when the connection has been given up.
    device: Option<File>,
}

/// Requests of the kernel, by their numbers.
const GETATTR: u32 = 3;
const STATFS: u32 = 17;
const INIT: u32 = 26;

/// A header of a request, and of a reply.
const REQUEST_BYTES: usize = 40;
const REPLY_BYTES: u32 = 16;

/// The version of the protocol that is spoken.
const VERSION: (u32, u32) = (7, 31);

impl Mute {
    /// Answers that it is there, and `answers` questions about its root.
    fn after(answers: usize) -> Self {
        if !Path::new("/dev/fuse").exists() {
            let status = Command::new("modprobe").arg("fuse").status();
            assert!(status.unwrap().success(), "this kernel has FUSE");
        }
        let device = File::options().read(true).write(true).open("/dev/fuse");
        let device = device.unwrap();
        let options = format!(
            "fd={},rootmode=40000,user_id=0,group_id=0",
            device.as_raw_fd()
        );
        let directory = TempDir::new().unwrap();
        let flags = MountFlags::NOSUID | MountFlags::NODEV;
        let options = std::ffi::CString::new(options).unwrap();
        rustix::mount::mount("mute", directory.path(), "fuse", flags, options.as_c_str()).unwrap();
        let mute = Self {
            directory,
            device: Some(device),
        };
        answer(mute.device());
        if answers > 0 {
            let device = mute.device().try_clone().unwrap();
            std::thread::spawn(move || (0..answers).for_each(|_| answer(&device)));
        }
        mute
    }

    fn device(&self) -> &File {
        self.device.as_ref().unwrap()
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Waits until somebody waits for an answer.
    fn until_somebody_waits(&self) {
        let mut asked = [PollFd::new(self.device(), PollFlags::IN)];
        poll(&mut asked, None).unwrap();
    }
}

impl Drop for Mute {
    fn drop(&mut self) {
        // Ends the connection: whoever waits gets an error.
        self.device = None;
        let _ = rustix::mount::unmount(self.directory.path(), UnmountFlags::DETACH);
    }
}

/// Reads one request and answers it.
fn answer(mut device: &File) {
    let mut request = vec![0; 1024 * 1024];
    let length = device.read(&mut request).unwrap();
    assert!(length >= REQUEST_BYTES);
    let body = match u32::from_ne_bytes(request[4..8].try_into().unwrap()) {
        INIT => init(),
        GETATTR => root(),
        STATFS => vec![0; 80],
        other => panic!("the kernel has no reason to ask for {other}"),
    };
    let length = REPLY_BYTES + u32::try_from(body.len()).unwrap();
    let mut reply = length.to_ne_bytes().to_vec();
    reply.extend(0_u32.to_ne_bytes());
    reply.extend(&request[8..16]);
    reply.extend(body);
    assert_eq!(device.write(&reply).unwrap(), reply.len());
}

/// `struct fuse_init_out`, with nothing that could be left out.
fn init() -> Vec<u8> {
    let mut body = Vec::new();
    body.extend(VERSION.0.to_ne_bytes());
    body.extend(VERSION.1.to_ne_bytes());
    body.resize(64, 0);
    // max_write
    body[20..24].copy_from_slice(&4096_u32.to_ne_bytes());
    body
}

/// `struct fuse_attr_out` of a directory, to be asked for again.
fn root() -> Vec<u8> {
    let mut body = vec![0; 104];
    body[16..24].copy_from_slice(&1_u64.to_ne_bytes());
    body[76..80].copy_from_slice(&0o040_755_u32.to_ne_bytes());
    body[80..84].copy_from_slice(&2_u32.to_ne_bytes());
    body
}

/// Runs `husk create` of the engine's bundle, which does not come back.
fn create(engine: &Engine, bundle: &str) -> Child {
    let pid_file = engine.path("pid");
    let pid_file = pid_file.to_str().unwrap();
    let words = [
        "create",
        "--bundle",
        bundle,
        "--pid-file",
        pid_file,
        &engine.id,
    ];
    engine.command(&words).spawn().unwrap()
}

fn bundle_of(engine: &Engine) -> String {
    engine.bundle().path().to_str().unwrap().to_owned()
}

#[test]
fn a_volume_that_never_answers_keeps_neither_state_nor_delete_waiting() {
    only_husk("runc has no supervisor and no VMM");
    let mute = Mute::after(0);
    let before = Remains::seen();
    let bundle = Bundle::busybox()
        .shell(LOOP)
        .bind(mute.path(), "/mnt", &["bind"]);
    let engine = Engine::of(bundle);
    let mut creating = create(&engine, &bundle_of(&engine));
    mute.until_somebody_waits();
    assert_eq!(engine.state()["status"], "creating");
    // There is no process yet that could be killed.
    assert_ne!(engine.call(&["kill", "--all"]).status, 0);
    engine.call(&["delete"]).assert_refused(&["not stopped"]);
    engine.call(&["delete", "--force"]).assert_status(0);
    before.assert_nothing_new(&engine.id, &engine.runtime.root());
    assert!(!creating.wait().unwrap().success());
    assert!(engine.errors().contains("husk:"), "{}", engine.errors());
}

#[test]
fn a_volume_that_never_answers_is_given_up_and_leaves_nothing() {
    only_husk("runc has no supervisor and no VMM");
    let mute = Mute::after(0);
    let bundle = Bundle::busybox()
        .shell(LOOP)
        .bind(mute.path(), "/mnt", &["bind"]);
    // Nothing may be left of it, as the file system stays mute.
    let output = Runtime::from_environment().run(&bundle);
    assert_ne!(output.status, 0);
    assert!(output.errors().contains("does not answer"), "{output:?}");
}

#[test]
fn a_volume_that_never_answers_holds_up_its_own_container_of_a_pod_only() {
    only_husk("runc has no supervisor and no VMM");
    let before = Remains::seen();
    let pod = Engine::of(Bundle::busybox().shell(LOOP));
    let process = pod.make(&["run", "--detach"], &[]);
    pod.await_output("up\n");
    // Its verb asks once what it is, and then the sandbox's supervisor.
    let mute = Mute::after(1);
    let annotations = json!({
        "io.kubernetes.cri-o.ContainerType": "container",
        "io.kubernetes.cri-o.SandboxID": pod.id,
    });
    let bundle = Bundle::busybox()
        .shell(LOOP)
        .with("/annotations", annotations)
        .bind(mute.path(), "/mnt", &["bind"]);
    let member = Engine::beside(&pod, bundle);
    let mut creating = create(&member, &bundle_of(&member));
    mute.until_somebody_waits();
    let echoed = pod.runtime.call(&["exec", &pod.id, "echo", "here"]);
    echoed.assert_prints("here\n");
    assert_eq!(pod.state()["status"], "running");
    assert_eq!(member.state()["status"], "creating");
    pod.call(&["ps"]).assert_status(0);
    pod.call(&["pause"]).assert_status(0);
    pod.call(&["resume"]).assert_status(0);
    member.call(&["delete", "--force"]).assert_status(0);
    before.assert_nothing_new(&member.id, &member.runtime.root());
    assert!(!creating.wait().unwrap().success());
    // Its supervisor ends though a thread of it still waits.
    pod.call(&["kill"]).assert_status(0);
    assert_eq!(process.wait(), 5);
    assert_eq!(pod.output(), "up\nbye\n");
    pod.call(&["delete"]).assert_status(0);
    before.assert_nothing_new(&pod.id, &pod.runtime.root());
}

#[test]
fn a_bundle_that_never_answers_keeps_nobody_else_waiting() {
    only_husk("runc has no supervisor and no VMM");
    let mute = Mute::after(0);
    let before = Remains::seen();
    let engine = Engine::of(Bundle::busybox().shell(LOOP));
    let mut creating = create(&engine, mute.path().to_str().unwrap());
    mute.until_somebody_waits();
    let output = engine.runtime.run(&Bundle::busybox().shell("echo here"));
    output.assert_prints("here\n");
    engine.runtime.call(&["list"]).assert_status(0);
    engine.call(&["delete", "--force"]).assert_status(0);
    creating.kill().unwrap();
    assert!(!creating.wait().unwrap().success());
    before.assert_nothing_new(&engine.id, &engine.runtime.root());
}
