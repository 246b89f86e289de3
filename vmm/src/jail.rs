//! The jail: what is left to a VMM that a guest has taken over.
//!
//! - A mount namespace whose root is the shared directory, or an empty directory. Mounts are slaves: what the supervisor mounts below the
//!   shared directory later appears, nothing goes back.
//! - A network namespace without interfaces, unless the supervisor has chosen one.
//! - The capabilities that a file server needs to act for the users of the guest; none without a share. No program is gained by `execve`.
//! - No core dumps: they would hold the guest's memory. As many descriptors as the host lets a process have: each file the guest holds open
//!   takes one.
//!
//! Entered while there is one thread, since namespaces and capabilities belong to threads.

use std::io;
use std::path::Path;

use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_bind_recursive, mount_change,
    unmount,
};
use rustix::process::{Resource, Rlimit, chdir, getrlimit, pivot_root, setrlimit};
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

/// Why the jail could not be entered.
#[derive(Debug, thiserror::Error)]
#[error("{step}")]
pub struct JailError {
    /// What was being done.
    step: &'static str,
    /// The host's reason.
    #[source]
    source: io::Error,
}

fn step(step: &'static str) -> impl FnOnce(rustix::io::Errno) -> JailError {
    move |source| JailError {
        step,
        source: source.into(),
    }
}

/// Enters the jail with `root`, the shared directory, as root directory.
pub fn enter(jail: Jail, root: Option<&Path>) -> Result<(), JailError> {
    set_limits()?;
    if !jail.enabled {
        return Ok(());
    }
    let mut namespaces = UnshareFlags::NEWNS;
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
        current: Some(0),
        maximum: Some(0),
    };
    setrlimit(Resource::Core, none).map_err(step("forbid core dumps"))?;
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
    }
    chdir(root).map_err(step("enter the new root"))?;
    // The old root ends up on top of the new one, and is taken off.
    pivot_root(".", ".").map_err(step("change the root"))?;
    unmount(".", UnmountFlags::DETACH).map_err(step("detach the old root"))?;
    chdir("/").map_err(step("enter the root"))
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
