//! Directories and files that something is mounted on, known by descriptor.
//!
//! A guest with its kernel taken over may rename, replace and link what is in the share. So nothing in it is looked up by a path: a
//! place is made new, opened beneath its parent without following a link or crossing a mount, and from then on used by its descriptor.
//! Removal never descends: what is mounted is detached, and then one name is removed, which the kernel refuses (`EBUSY`, `ENOTEMPTY`)
//! as long as anything is mounted on it or in it.

use std::io;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::mount::{MoveMountFlags, UnmountFlags};

/// More mounts are on one place only if a mount namespace may hold more (`fs.mount-max`, by default this many).
const STACKED_MAX: usize = 100_000;

/// What is found is in the share itself: no link, no mount, nothing outside.
const RESOLVE: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_MAGICLINKS)
    .union(ResolveFlags::NO_XDEV);

/// See the module.
#[derive(Debug)]
pub(super) struct Place {
    name: String,
    fd: OwnedFd,
    is_directory: bool,
}

impl Place {
    /// Makes a directory. That all users of a guest pass through it does not depend on this process's umask.
    pub(super) fn directory(parent: &impl AsFd, name: &str) -> io::Result<Self> {
        let mode = Mode::from_raw_mode(0o755);
        rustix::fs::mkdirat(parent, name, mode)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::openat2(parent, name, flags, Mode::empty(), RESOLVE)?;
        rustix::fs::fchmod(&fd, mode)?;
        Ok(Self {
            name: name.to_owned(),
            fd,
            is_directory: true,
        })
    }

    /// Makes an empty file.
    pub(super) fn file(parent: &impl AsFd, name: &str) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW;
        let mode = Mode::from_raw_mode(0o644);
        let fd = rustix::fs::openat2(parent, name, flags | OFlags::CLOEXEC, mode, RESOLVE)?;
        Ok(Self {
            name: name.to_owned(),
            fd,
            is_directory: false,
        })
    }

    /// Attaches a mount that is nowhere yet.
    pub(super) fn attach(&self, tree: &OwnedFd) -> io::Result<()> {
        attach(tree, self.fd.as_fd())
    }

    /// Removes it from `parent` with all that is mounted on it, and with nothing that is in it.
    pub(super) fn remove(self, parent: &impl AsFd) -> Result<(), Left> {
        let Self {
            name,
            fd,
            is_directory,
        } = self;
        let flags = if is_directory {
            AtFlags::REMOVEDIR
        } else {
            AtFlags::empty()
        };
        let removed = detach(fd.as_fd())
            .and_then(|()| Ok(rustix::fs::unlinkat(parent, name.as_str(), flags)?));
        match removed {
            Err(source) if source.kind() != io::ErrorKind::NotFound => Err(Left { name, source }),
            _ => Ok(()),
        }
    }
}

impl AsFd for Place {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// What could not be removed.
#[derive(Debug, thiserror::Error)]
#[error("cannot remove {name}")]
pub(super) struct Left {
    name: String,
    #[source]
    source: io::Error,
}

/// Attaches a mount that is nowhere yet to what `target` is, or on top of what is mounted there.
pub(super) fn attach(tree: &OwnedFd, target: BorrowedFd<'_>) -> io::Result<()> {
    let both = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    Ok(rustix::mount::move_mount(tree, "", target, "", both)?)
}

/// Detaches all that is mounted on what `target` is: a mount that came by propagation lies on top of ours.
pub(super) fn detach(target: BorrowedFd<'_>) -> io::Result<()> {
    let path = path_of(target);
    for _ in 0..STACKED_MAX {
        match rustix::mount::unmount(path.as_str(), UnmountFlags::DETACH) {
            Ok(()) => {}
            // What it leads to is no mount any more.
            Err(Errno::INVAL) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
    Err(io::Error::other("what is mounted on it has no end"))
}

/// For system calls that take a path only.
pub(super) fn path_of(fd: BorrowedFd<'_>) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_planted_link_leads_nowhere() {
        let (share, host) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let file = host.path().join("file");
        fs::write(&file, "kept").unwrap();
        symlink(host.path(), share.path().join("folder")).unwrap();
        symlink(&file, share.path().join("file")).unwrap();
        symlink(host.path().join("new"), share.path().join("new")).unwrap();
        let top = File::open(share.path()).unwrap();
        for name in ["folder", "file", "new"] {
            assert!(Place::directory(&top, name).is_err(), "{name}");
            assert!(Place::file(&top, name).is_err(), "{name}");
        }
        // One that was put there after the directory was made.
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let opened = rustix::fs::openat2(&top, "folder", flags, Mode::empty(), RESOLVE);
        assert_eq!(opened.unwrap_err(), Errno::LOOP);
        assert_eq!(fs::read_to_string(&file).unwrap(), "kept");
        assert_eq!(fs::read_dir(host.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_removal_goes_into_no_directory() {
        let share = tempfile::tempdir().unwrap();
        let top = File::open(share.path()).unwrap();
        let place = Place::directory(&top, "folder").unwrap();
        let file = share.path().join("folder/file");
        fs::write(&file, "kept").unwrap();
        let left = place.remove(&top).unwrap_err();
        assert_eq!(left.to_string(), "cannot remove folder");
        assert_eq!(fs::read_to_string(&file).unwrap(), "kept");
    }
}
