//! Attributes of mounts, by mount_setattr(2).

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd};

use nix::libc;

/// What is to become of a mount.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Change<'a> {
    /// Nobody writes through it.
    ReadOnly,
    /// Devices in it are none, and no program gains anything by it.
    Untrusted,
    /// What is mounted and unmounted in it happens to copies that are made of it too.
    Shared,
    /// What is mounted and unmounted elsewhere does not concern it, nor the other way round.
    Private,
    /// What is mounted and unmounted where it was copied from happens to it too, but not the other way round.
    Slave,
    /// Files seen through it have the owners that this user namespace maps theirs to.
    Owners(BorrowedFd<'a>),
}

/// Makes the change to `tree`, and if `recursive` to all mounts in it.
pub(crate) fn set(tree: BorrowedFd<'_>, change: Change<'_>, recursive: bool) -> io::Result<()> {
    let mut attr = libc::mount_attr {
        attr_set: 0,
        attr_clr: 0,
        propagation: 0,
        userns_fd: 0,
    };
    match change {
        Change::ReadOnly => attr.attr_set = libc::MOUNT_ATTR_RDONLY,
        Change::Untrusted => attr.attr_set = libc::MOUNT_ATTR_NODEV | libc::MOUNT_ATTR_NOSUID,
        Change::Shared => attr.propagation = libc::MS_SHARED,
        Change::Private => attr.propagation = libc::MS_PRIVATE,
        Change::Slave => attr.propagation = libc::MS_SLAVE,
        Change::Owners(namespace) => {
            attr.attr_set = libc::MOUNT_ATTR_IDMAP;
            attr.userns_fd = u64::try_from(namespace.as_raw_fd()).map_err(io::Error::other)?;
        }
    }
    let below = if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the path is a string with an end, `attr` a mount_attr of the size given; the kernel reads both and keeps neither.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH | below,
            &raw const attr,
            size_of::<libc::mount_attr>(),
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
