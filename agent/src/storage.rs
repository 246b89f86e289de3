//! What the host offers as storage: the shared directory.

use std::fs;
use std::io;

use agent_api::{SHARE_DIR, SHARE_TAG};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

/// Mounts the shared directory. How long its contents may be cached is decided by the server, file by file.
pub(crate) fn mount_share() -> io::Result<()> {
    fs::create_dir_all(SHARE_DIR)?;
    Ok(mount(
        SHARE_TAG,
        SHARE_DIR,
        "virtiofs",
        MountFlags::empty(),
        None,
    )?)
}

/// Writes back what is cached and lets go.
pub(crate) fn unmount_share() -> io::Result<()> {
    Ok(unmount(SHARE_DIR, UnmountFlags::DETACH)?)
}
