//! What of the host's is bound as a container's `/dev/shm`.
//!
//! Engines make a tmpfs for it and bind that; for the containers of a pod the same one. A guest has to have it in its own memory, where processes can
//! map it together: the guest's kernel makes one of the same size, and one only for all containers of the VM that are given the same. Anything
//! else than a tmpfs is an ordinary bind.
//!
//! Whoever asks must see the mounts that the engine has made. What cannot be looked at is no tmpfs; that it is missing is told when it is bound.

use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, fstat, fstatfs, openat};

use crate::spec::HostMemory;

/// `f_type` of a tmpfs (linux/magic.h).
const TMPFS_MAGIC: i64 = 0x0102_1994;

/// The tmpfs at `source`, as a process with the root directory `root` sees it.
pub(crate) fn look(root: &Path, source: &Path) -> Option<HostMemory> {
    let below = source.strip_prefix("/").ok()?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let found = openat(CWD, root.join(below), flags, Mode::empty()).ok()?;
    let system = fstatfs(&found).ok()?;
    if system.f_type != TMPFS_MAGIC {
        return None;
    }
    let stat = fstat(&found).ok()?;
    let block = u64::try_from(system.f_bsize).ok()?;
    Some(HostMemory {
        name: format!("{}-{}", stat.st_dev, stat.st_ino),
        bytes: system.f_blocks.saturating_mul(block),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_tmpfs_is_memory() {
        assert_eq!(look(Path::new("/"), Path::new("/proc")), None);
        assert_eq!(look(Path::new("/"), Path::new("/not/there")), None);
        assert_eq!(look(Path::new("/"), Path::new("relative")), None);
    }
}
