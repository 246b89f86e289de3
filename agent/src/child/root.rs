//! The container's root directory: every path of the specification is resolved inside it, whatever its image has put there.
//!
//! Resolution is `openat2(2)` with `RESOLVE_IN_ROOT`: links, absolute ones too, stay inside, and no magic link of a `/proc` is
//! followed. What comes out is a descriptor; nothing is looked up twice.

use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{
    FileType, Mode, OFlags, ResolveFlags, fstat, mkdirat, openat, openat2, readlinkat,
};
use rustix::io::Errno;
use rustix::mount::{
    MountPropagationFlags, UnmountFlags, mount_bind_recursive, mount_change, unmount,
};
use rustix::process::{chdir, fchdir, pivot_root};

use super::{Doing, StepError, mounts, quoted};
use crate::plan::{Container, Propagation};

/// A descriptor of the root directory.
#[derive(Debug)]
pub(super) struct Root(OwnedFd);

const PATH: OFlags = OFlags::PATH.union(OFlags::CLOEXEC);
/// Of directories made for mounts.
const DIRECTORY_MODE: Mode = Mode::from_raw_mode(0o755);
/// As many links as the kernel follows.
const LINKS_MAX: usize = 40;
/// How often a path is looked up while others rename; one attempt is a few microseconds.
const ATTEMPTS_MAX: usize = 1024;
const FILE_MODE: Mode = Mode::from_raw_mode(0o644);

impl Root {
    /// Cuts this mount namespace off from the outside and makes the root file system a mount.
    pub(super) fn mount(container: &Container) -> Result<Self, StepError> {
        let rootfs = &container.rootfs;
        let outer = match mounts::propagation_flags(container.propagation) {
            // The outside must see nothing of the container's mounts; shared ones are made so once the container is cut off.
            flags if flags.intersects(MountPropagationFlags::PRIVATE) => {
                flags | MountPropagationFlags::REC
            }
            _ => MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC,
        };
        mount_change("/", outer).doing(|| "cannot change the propagation of /".to_owned())?;
        mount_bind_recursive(rootfs, rootfs)
            .doing(|| format!("cannot bind the rootfs {}", quoted(rootfs)))?;
        let root = rustix::fs::open(rootfs, PATH | OFlags::DIRECTORY, Mode::empty())
            .doing(|| format!("cannot open the rootfs {}", quoted(rootfs)))?;
        Ok(Self(root))
    }

    /// Makes this the root of the mount namespace and lets go of the old one.
    pub(super) fn pivot(self) -> Result<Self, StepError> {
        fchdir(&self.0).doing(|| "cannot enter the rootfs".to_owned())?;
        // The old root comes to lie over the new one, and is taken away from there: no directory for it is needed.
        pivot_root(".", ".").doing(|| "cannot change the root".to_owned())?;
        unmount(".", UnmountFlags::DETACH).doing(|| "cannot detach the old root".to_owned())?;
        chdir("/").doing(|| "cannot enter the new root".to_owned())?;
        let root = rustix::fs::open("/", PATH | OFlags::DIRECTORY, Mode::empty())
            .doing(|| "cannot open /".to_owned())?;
        Ok(Self(root))
    }

    /// What is at `path`.
    pub(super) fn resolve(&self, path: &Path) -> Result<OwnedFd, Errno> {
        self.look_up(path, ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS)
    }

    /// What is at `path`, with no symbolic link on the way.
    pub(super) fn resolve_plain(&self, path: &Path) -> Result<OwnedFd, Errno> {
        self.look_up(path, ResolveFlags::IN_ROOT | ResolveFlags::NO_SYMLINKS)
    }

    /// With `..` in the path the kernel cannot tell whether it stays inside while something is renamed anywhere (openat2(2)).
    fn look_up(&self, path: &Path, how: ResolveFlags) -> Result<OwnedFd, Errno> {
        for _ in 0..ATTEMPTS_MAX {
            match openat2(&self.0, path, PATH, Mode::empty(), how) {
                Err(Errno::AGAIN) => {}
                found => return found,
            }
        }
        Err(Errno::AGAIN)
    }

    /// The directory at `path`, made with its parents where it is missing.
    pub(super) fn directory(&self, path: &Path) -> Result<OwnedFd, Errno> {
        self.make(path, |parent, name| mkdirat(parent, name, DIRECTORY_MODE))
    }

    /// What is at `path`, an empty file where there is nothing.
    pub(super) fn file(&self, path: &Path) -> Result<OwnedFd, Errno> {
        self.make(path, |parent, name| {
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
            openat(parent, name, flags, FILE_MODE).map(drop)
        })
    }

    /// The directory that `path` is in, and its name there.
    pub(super) fn parent<'p>(&self, path: &'p Path) -> Result<(OwnedFd, &'p Path), Errno> {
        let name = path.file_name().ok_or(Errno::INVAL)?;
        let parent = self.directory(path.parent().unwrap_or(Path::new("/")))?;
        Ok((parent, Path::new(name)))
    }

    /// Where a link of the image leads to nothing, what it names is made.
    fn make(
        &self,
        path: &Path,
        make: impl Fn(BorrowedFd<'_>, &Path) -> Result<(), Errno>,
    ) -> Result<OwnedFd, Errno> {
        let mut path = path.to_owned();
        for _ in 0..LINKS_MAX {
            match self.resolve(&path) {
                Err(Errno::NOENT) => {}
                found => return found,
            }
            if path.file_name().is_none() {
                // `..` behind something that is missing: what both cancel out to.
                path = path
                    .parent()
                    .and_then(Path::parent)
                    .map_or_else(|| PathBuf::from("/"), Path::to_owned);
                continue;
            }
            let (parent, name) = self.parent(&path)?;
            match make(parent.as_fd(), name) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(errno) => return Err(errno),
            }
            // By the parent: the path may lead through something that is missing, and back by `..`.
            let found = openat(&parent, name, PATH | OFlags::NOFOLLOW, Mode::empty())?;
            if FileType::from_raw_mode(fstat(&found)?.st_mode) != FileType::Symlink {
                return Ok(found);
            }
            let target = readlinkat(&parent, name, Vec::new())?;
            let target = Path::new(OsStr::from_bytes(target.as_bytes()));
            path = path.parent().unwrap_or(Path::new("/")).join(target);
        }
        Err(Errno::LOOP)
    }
}

impl AsFd for Root {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Whether it is a directory.
pub(super) fn is_directory(fd: impl AsFd) -> Result<bool, Errno> {
    Ok(FileType::from_raw_mode(fstat(fd)?.st_mode).is_dir())
}

/// The working directory of the first process need not be there yet. On a read-only root it cannot be made; entering it then fails.
pub(super) fn make_cwd(root: &Root, cwd: &Path) -> Result<(), StepError> {
    match root.directory(cwd) {
        Ok(_) | Err(Errno::ROFS) => Ok(()),
        Err(errno) => {
            Err(errno).doing(|| format!("cannot make the working directory {}", quoted(cwd)))
        }
    }
}

/// Lets the container's root propagate mounts as the specification says. To be done last: nothing unbindable can be bound any more.
pub(super) fn propagate(propagation: Propagation) -> Result<(), StepError> {
    let flags = mounts::propagation_flags(propagation);
    if flags.intersects(MountPropagationFlags::SHARED | MountPropagationFlags::UNBINDABLE) {
        mount_change("/", flags)
            .doing(|| "cannot change the propagation of the rootfs".to_owned())?;
    }
    Ok(())
}
