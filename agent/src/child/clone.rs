//! The system calls of process creation that have no safe wrapper.

use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use rustix::io::Errno;

use crate::plan::Namespaces;
use crate::syscall::checked;

/// Which of the two a process is after [`clone_sibling`].
#[derive(Debug)]
pub(super) enum Side {
    Parent { child: i32, pidfd: OwnedFd },
    Child,
}

/// The arguments of clone3(2), first version plus the cgroup.
#[repr(C)]
#[derive(Default)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

/// Clones this process as a child of its own parent, into new `namespaces` and the cgroup whose directory `cgroup` is.
pub(super) fn clone_sibling(namespaces: Namespaces, cgroup: impl AsFd) -> Result<Side, Errno> {
    const CLONE_PIDFD: u64 = 0x1000;
    const CLONE_PARENT: u64 = 0x8000;
    const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;
    let mut pidfd: i32 = -1;
    let child = clone3(&CloneArgs {
        flags: u64::from(namespaces.bits()) | CLONE_PIDFD | CLONE_PARENT | CLONE_INTO_CGROUP,
        pidfd: (&raw mut pidfd)
            .expose_provenance()
            .try_into()
            .map_err(|_| Errno::INVAL)?,
        cgroup: u64::try_from(cgroup.as_fd().as_raw_fd()).map_err(|_| Errno::BADF)?,
        ..CloneArgs::default()
    })?;
    if child == 0 {
        return Ok(Side::Child);
    }
    // SAFETY: the kernel has opened the pidfd for this process, which has not given it to anybody else.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    Ok(Side::Parent { child, pidfd })
}

/// The id of the child; 0 in the child.
fn clone3(args: &CloneArgs) -> Result<i32, Errno> {
    // SAFETY: `args` is a valid clone_args of the size given, with a place for whatever it asks for. Without CLONE_VM and with no stack of its own the
    // child is a copy of this process, as after fork(2); this process has one thread, so that no lock is held by another in the copy.
    let child = checked(unsafe {
        libc::syscall(
            libc::SYS_clone3,
            std::ptr::from_ref(args),
            size_of::<CloneArgs>(),
        )
    })?;
    i32::try_from(child).map_err(|_| Errno::RANGE)
}

/// Marks every descriptor from `first` on close-on-exec.
pub(super) fn close_on_exec_from(first: u32) -> Result<(), Errno> {
    // SAFETY: close_range(2) with CLOSE_RANGE_CLOEXEC closes nothing and touches no memory.
    checked(unsafe {
        libc::syscall(
            libc::SYS_close_range,
            first,
            u32::MAX,
            libc::CLOSE_RANGE_CLOEXEC,
        )
    })
    .map(drop)
}

/// Ends this process at once: a copy of another runs nothing at its exit.
pub(super) fn exit(code: u8) -> ! {
    // SAFETY: _exit(2) does not return and runs no handlers.
    unsafe { libc::_exit(code.into()) }
}
