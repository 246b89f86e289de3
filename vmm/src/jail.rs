//! The jail: what is left to a VMM that a guest has taken over.
//!
//! - A mount namespace whose root is the shared directory, or an empty directory. The share's own
//!   file system is read-only in it; what is mounted below has neither devices nor set-id programs.
//!   Mounts are slaves: what the supervisor mounts below the shared directory later appears,
//!   nothing goes back.
//! - A PID namespace whose only process it is, so that no other can be named. A process enters one
//!   by being made in it: that is up to whoever starts the VMM, and checked here.
//! - IPC and UTS namespaces of its own; a network namespace without interfaces, unless the
//!   supervisor has chosen one.
//! - The capabilities that a file server needs to act for the users of the guest; none without a
//!   share. No program is gained by `execve`.
//! - No core dumps: they would hold the guest's memory. As many descriptors as the host lets a
//!   process have: each file the guest holds open takes one.
//!
//! Entered while there is one thread, since namespaces and capabilities belong to threads.

use std::ffi::CString;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_bind_recursive, mount_change,
    unmount,
};
use rustix::process::{
    DumpableBehavior, Pid, Resource, Rlimit, chdir, getpid, getrlimit, pivot_root,
    set_dumpable_behavior, setrlimit,
};
use rustix::thread::{
    CapabilitySet, CapabilitySets, UnshareFlags, clear_ambient_capability_set,
    remove_capability_from_bounding_set, set_capabilities, set_no_new_privs, unshare_unsafe,
};
use vmm_api::Jail;

/// For machines without a share: a directory every host has, covered by an empty file system in our namespace only.
const EMPTY_ROOT: &str = "/proc";

/// What serving files for all users of a guest takes.
const FILE_SERVER: CapabilitySet = CapabilitySet::CHOWN
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::FSETID)
    .union(CapabilitySet::MKNOD)
    .union(CapabilitySet::SETFCAP)
    .union(CapabilitySet::SETGID)
    .union(CapabilitySet::SETUID);

/// No core file is as small as this. And a program to which the host pipes core dumps gets none at
/// this limit alone; at 0 it gets all of the memory (Linux, `do_coredump`).
const NO_CORE: u64 = 1;

/// Why the jail could not be entered.
#[derive(Debug, thiserror::Error)]
pub enum JailError {
    /// Whoever started the VMM has given it no PID namespace.
    #[error("not the first process of a PID namespace (start it by `unshare --pid --fork`)")]
    NotFirst,
    /// A system call failed.
    #[error("{step}")]
    Step {
        /// What was being done.
        step: &'static str,
        /// The host's reason.
        #[source]
        source: io::Error,
    },
}

fn step<E: Into<io::Error>>(step: &'static str) -> impl FnOnce(E) -> JailError {
    move |source| JailError::Step {
        step,
        source: source.into(),
    }
}

/// Enters the jail with `root`, the shared directory, as root directory.
pub fn enter(jail: Jail, root: Option<&Path>) -> Result<(), JailError> {
    // The filters name the process, too.
    if (jail.enabled || jail.seccomp) && getpid() != Pid::INIT {
        return Err(JailError::NotFirst);
    }
    set_limits()?;
    if !jail.enabled {
        return Ok(());
    }
    let mut namespaces = UnshareFlags::NEWNS | UnshareFlags::NEWIPC | UnshareFlags::NEWUTS;
    if jail.own_network {
        namespaces |= UnshareFlags::NEWNET;
    }
    // SAFETY: the table of file descriptors is not unshared.
    unsafe { unshare_unsafe(namespaces) }.map_err(step("make namespaces"))?;
    change_root(root)?;
    drop_capabilities(if root.is_some() {
        FILE_SERVER
    } else {
        CapabilitySet::empty()
    })
}

fn set_limits() -> Result<(), JailError> {
    let none = Rlimit {
        current: Some(NO_CORE),
        maximum: Some(NO_CORE),
    };
    setrlimit(Resource::Core, none).map_err(step("forbid core dumps"))?;
    set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(step("forbid core dumps"))?;
    let files = getrlimit(Resource::Nofile).maximum;
    setrlimit(
        Resource::Nofile,
        Rlimit {
            current: files,
            maximum: files,
        },
    )
    .map_err(step("raise the number of open files"))
}

fn change_root(root: Option<&Path>) -> Result<(), JailError> {
    mount_change(
        "/",
        MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC,
    )
    .map_err(step("make mounts slaves"))?;
    let root = root.unwrap_or(Path::new(EMPTY_ROOT));
    if root == Path::new(EMPTY_ROOT) {
        let flags =
            MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
        mount("none", root, "tmpfs", flags, c"nr_inodes=1,size=0")
            .map_err(step("mount an empty root"))?;
    } else {
        // A root must be a mount; and what is mounted below it now comes along.
        mount_bind_recursive(root, root).map_err(step("bind the shared directory"))?;
        restrict_mounts(root).map_err(step("restrict the shared directory"))?;
    }
    chdir(root).map_err(step("enter the new root"))?;
    // The old root ends up on top of the new one, and is taken off.
    pivot_root(".", ".").map_err(step("change the root"))?;
    unmount(".", UnmountFlags::DETACH).map_err(step("detach the old root"))?;
    chdir("/").map_err(step("enter the root"))
}

/// Makes the share's own file system, which is the supervisor's, read-only; and everything below it
/// without devices and set-id programs, which are the guest's kernel's to interpret. Mounts that
/// come later have the flags that the supervisor gives them.
fn restrict_mounts(root: &Path) -> io::Result<()> {
    let everywhere = libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV;
    set_mount_attributes(root, everywhere, libc::AT_RECURSIVE)?;
    set_mount_attributes(root, libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOEXEC, 0)
}

fn set_mount_attributes(path: &Path, attributes: u64, flags: libc::c_int) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let change = libc::mount_attr {
        attr_set: attributes,
        attr_clr: 0,
        propagation: 0,
        userns_fd: 0,
    };
    // SAFETY: the path is a string with an end, `change` a mount_attr of the size given; the kernel
    // reads both and keeps neither.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            libc::AT_FDCWD,
            path.as_ptr(),
            flags | libc::AT_SYMLINK_NOFOLLOW,
            &raw const change,
            size_of::<libc::mount_attr>(),
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

fn drop_capabilities(keep: CapabilitySet) -> Result<(), JailError> {
    for capability in CapabilitySet::all().difference(keep).iter() {
        match remove_capability_from_bounding_set(capability) {
            // A kernel that does not know a capability cannot grant it.
            Ok(()) | Err(rustix::io::Errno::INVAL) => {}
            Err(error) => return Err(step("bound the capabilities")(error)),
        }
    }
    clear_ambient_capability_set().map_err(step("clear the ambient capabilities"))?;
    let sets = CapabilitySets {
        effective: keep,
        permitted: keep,
        inheritable: CapabilitySet::empty(),
    };
    set_capabilities(None, sets).map_err(step("drop capabilities"))?;
    set_no_new_privs(true).map_err(step("forbid new privileges"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn process_among_others_is_refused_before_anything_is_changed() {
        let limit = getrlimit(Resource::Core);
        let refused = enter(Jail::default(), None);
        assert!(matches!(refused, Err(JailError::NotFirst)));
        let filters_only = Jail {
            enabled: false,
            ..Jail::default()
        };
        assert!(matches!(
            enter(filters_only, None),
            Err(JailError::NotFirst)
        ));
        assert_eq!(getrlimit(Resource::Core), limit);
    }
}
