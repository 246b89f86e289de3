//! Locks on a volume, which others have too: the host, another VM, another container of the same VM.

use std::fs::{self, File};
use std::path::Path;

use harness::{Bundle, Engine, Runtime, wait};
use rustix::fs::{FlockOperation, fcntl_lock, flock};

use crate::sandboxes;

/// A container with `folder` for a volume, in which it carries out `check`.
fn prober(folder: &Path, check: &str) -> Bundle {
    Bundle::busybox()
        .probe(env!("CARGO_BIN_EXE_probe"), &[])
        .shell(&format!("WORK=/vol probe {check}"))
        .bind(folder, "/vol", &["rbind", "rw"])
}

/// Whether this process could have both locks; it takes and keeps them then.
fn take(file: &File) -> bool {
    flock(file, FlockOperation::NonBlockingLockExclusive).is_ok()
        && fcntl_lock(file, FlockOperation::NonBlockingLockExclusive).is_ok()
}

#[test]
fn a_locked_file_of_a_volume_is_locked_for_container_host_and_other_vms() {
    let volume = tempfile::tempdir().unwrap();
    let folder = volume.path().join("locks-and-the-host");
    fs::create_dir(&folder).unwrap();
    let say = |name: &str| drop(File::create(folder.join(name)).unwrap());
    let heard = |name: &str| {
        let path = folder.join(name);
        wait::until(name, || path.exists());
    };
    let new = folder.join("new");
    let file = File::create_new(&new).unwrap();
    assert!(take(&file));
    // It appears with its locks.
    fs::rename(&new, folder.join("locked")).unwrap();
    let engine = Engine::of(prober(volume.path(), "locks-and-the-host"));
    let process = engine.make(&["run", "--detach"], &[]);
    heard("waiting");
    flock(&file, FlockOperation::Unlock).unwrap();
    fcntl_lock(&file, FlockOperation::Unlock).unwrap();
    heard("taken");
    assert!(flock(&file, FlockOperation::NonBlockingLockShared).is_err());
    assert!(fcntl_lock(&file, FlockOperation::NonBlockingLockShared).is_err());
    let taken = prober(volume.path(), "locks-taken");
    Runtime::from_environment()
        .run(&taken)
        .assert_prints("locks-taken holds\n");
    if Runtime::is_husk() {
        let member = sandboxes::member(&engine, prober(volume.path(), "locks-taken"));
        let process = member.make(&["run", "--detach"], &[]);
        assert_eq!(process.wait(), 0, "{}", member.output());
        member.call(&["delete"]).assert_status(0);
    }
    say("let-go");
    heard("let-go-of");
    // Its whole-file lock is the container's until that is gone.
    assert!(!take(&file));
    let words = ["kill", &engine.id, "KILL"];
    engine.runtime.call(&words).assert_status(0);
    assert_eq!(process.wait(), 137);
    wait::until("free", || take(&file));
    let shown = engine.output();
    assert!(!shown.contains(':'), "{shown}");
}
