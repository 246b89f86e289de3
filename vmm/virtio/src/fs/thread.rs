//! A working directory and a umask that belong to the calling thread.
//!
//! Linux keeps both per thread, but threads of a process start out sharing them. The FUSE server changes both for the moment of an operation
//! (`umask` where the guest's applies, the directory for extended attributes of special files); no other thread may see that.

use std::io;

use rustix::fs::Mode;
use rustix::thread::{UnshareFlags, unshare_unsafe};

/// Parts the calling thread from the others, and clears its umask: modes of new files are the guest's business.
pub(super) fn own_directory_and_umask() -> io::Result<()> {
    // SAFETY: what makes this call unsafe is `UnshareFlags::FILES`, the table of descriptors, which stays shared.
    unsafe { unshare_unsafe(UnshareFlags::FS) }?;
    rustix::process::umask(Mode::empty());
    Ok(())
}
