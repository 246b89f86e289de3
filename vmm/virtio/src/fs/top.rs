//! The share's own file system, told from what is mounted below it.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Mode, OFlags, StatxFlags, openat, statx};

/// The share's own file system.
pub(super) struct Top {
    /// `O_PATH`.
    root: OwnedFd,
    mount: MountId,
}

impl Top {
    pub(super) fn open(root: &Path) -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let root = openat(CWD, root, flags, Mode::empty())?;
        let (mount, _) = placed(&root, Path::new(""))?;
        Ok(Self { root, mount })
    }

    /// Whether the file at `path` with this inode number is on another mount. Not one that has
    /// become another since.
    pub(super) fn is_mounted(&self, path: &Path, number: u64) -> bool {
        placed(&self.root, path).is_ok_and(|found| found.0 != self.mount && found.1 == number)
    }
}

/// Tells a mount from others of this namespace, and a file system from others where the kernel does
/// not number mounts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct MountId {
    mount: u64,
    device: (u32, u32),
}

/// The mount that `path` below `root` is on, and the inode's number there. A link at its end is not
/// followed; the others are directories of the supervisor's.
fn placed(root: &OwnedFd, path: &Path) -> io::Result<(MountId, u64)> {
    let flags = AtFlags::EMPTY_PATH | AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
    let stat = statx(root, path, flags, StatxFlags::INO | StatxFlags::MNT_ID)?;
    let mount = MountId {
        mount: stat.stx_mnt_id,
        device: (stat.stx_dev_major, stat.stx_dev_minor),
    };
    Ok((mount, stat.stx_ino))
}
