//! The jail and the system call filters, attacked by who has taken the VMM over: each case is a
//! process of its own, in which one thread is a supervisor and another enters the real jail. They
//! need root, and no KVM.

#![expect(unsafe_code, reason = "makes system calls as they are")]

/// What a file server in the jail can do, and what not.
mod files;
/// System calls that each filter stops.
mod filters;
/// FUSE messages to a file server in the jail.
mod fuse;
/// What is out of reach.
mod reach;

use std::ffi::CString;
use std::io;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::thread;

use husk_vmm::jail;
use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_bind, mount_change, unmount,
};
use vmm_api::Jail;

/// Set in the process that is the case's own.
const CHILD: &str = "HUSK_VMM_JAIL_CASE";

/// Parts the calling thread, and what it makes from then on, from others.
fn unshare(flags: libc::c_int) {
    // SAFETY: none of the flags used here is of memory or of the table of descriptors.
    let result = unsafe { libc::unshare(flags) };
    assert_eq!(result, 0, "{}", io::Error::last_os_error());
}

/// Runs the case `name` again, alone, as the first process of a PID namespace.
fn run_alone(name: &str) -> Output {
    let name = name.to_owned();
    let child = thread::spawn(move || {
        unshare(libc::CLONE_NEWPID);
        Command::new(std::env::current_exe().unwrap())
            .args(["--exact", &name, "--nocapture", "--test-threads=1"])
            .env(CHILD, "1")
            .output()
            .unwrap()
    });
    child.join().unwrap()
}

fn is_alone() -> bool {
    std::env::var_os(CHILD).is_some()
}

/// Runs `inside` in a process of its own, which must be content with what it finds.
fn alone(name: &str, inside: fn()) {
    if is_alone() {
        return inside();
    }
    let output = run_alone(name);
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && text.contains("1 passed"),
        "{name}: {}, signal {:?}\n{text}\n{}",
        output.status,
        output.status.signal(),
        String::from_utf8_lossy(&output.stderr)
    );
}

/// A shared directory as a supervisor makes it, in a mount namespace of the process's own: a
/// container `c` with a root file system that is mounted, on which neither devices nor set-id
/// programs are forbidden, and a place `mounts/0` for a volume.
struct Supervisor {
    directory: tempfile::TempDir,
}

impl Supervisor {
    fn new() -> Self {
        unshare(libc::CLONE_NEWNS);
        let slaves = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
        mount_change("/", slaves).unwrap();
        let supervisor = Self {
            directory: tempfile::tempdir().unwrap(),
        };
        // Away from how the host mounts its temporary files.
        let all = supervisor.directory.path();
        mount("none", all, "tmpfs", MountFlags::empty(), c"mode=0755").unwrap();
        for name in ["share", "rootfs", "volume"] {
            std::fs::create_dir(all.join(name)).unwrap();
        }
        let share = supervisor.share();
        let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
        mount("husk", &share, "tmpfs", flags, c"mode=0755").unwrap();
        mount_change(&share, MountPropagationFlags::SHARED).unwrap();
        for name in ["c", "c/rootfs", "c/mounts", "c/mounts/0"] {
            std::fs::create_dir(share.join(name)).unwrap();
        }
        std::fs::write(share.join("c/mounts/1"), "").unwrap();
        mount_bind(supervisor.rootfs(), share.join("c/rootfs")).unwrap();
        supervisor
    }

    fn share(&self) -> PathBuf {
        self.directory.path().join("share")
    }

    fn rootfs(&self) -> PathBuf {
        self.directory.path().join("rootfs")
    }

    fn volume(&self) -> PathBuf {
        self.directory.path().join("volume")
    }

    /// Offers the volume to the guest, while the jail has been entered.
    fn mount_volume(&self) {
        mount_bind(self.volume(), self.share().join("c/mounts/0")).unwrap();
    }
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        // So that the directory can be removed.
        unmount(self.directory.path(), UnmountFlags::DETACH).unwrap();
    }
}

/// Runs `inside` on a thread that has entered the jail with `root`.
fn in_jail<T: Send + 'static>(
    root: Option<&Path>,
    inside: impl FnOnce() -> T + Send + 'static,
) -> T {
    let root = root.map(Path::to_owned);
    let thread = thread::spawn(move || {
        jail::enter(Jail::default(), root.as_deref()).unwrap();
        inside()
    });
    thread.join().unwrap()
}

/// A system call as it is; its result, or the error.
fn call(number: libc::c_long, arguments: [u64; 6]) -> Result<i64, i32> {
    let [a, b, c, d, e, f] = arguments;
    // SAFETY: each caller passes what the call takes, or expects it to fail.
    let result = unsafe { libc::syscall(number, a, b, c, d, e, f) };
    if result == -1 {
        return Err(io::Error::last_os_error().raw_os_error().unwrap());
    }
    Ok(result)
}

/// A path for [`call`].
fn text(path: &str) -> CString {
    CString::new(path).unwrap()
}
