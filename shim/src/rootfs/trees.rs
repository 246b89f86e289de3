//! Where a container's files come from: copies of the host's mounts that are attached nowhere yet.
//!
//! Who makes them must see the mounts that its caller sees; who attaches them need not, and has them lent: engines mount root file
//! systems where a supervisor that was there before does not see them. A copy gets its flags and owners, and never gives back to
//! the host what is mounted or unmounted in it, before it is seen by anybody. Ways to fail: a source is missing, leads out of the bundle, or
//! is nothing a guest can use.

use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd, RawFd};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags};
use rustix::mount::OpenTreeFlags;
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags};
use serde::{Deserialize, Serialize};

use super::RootfsError;
use crate::id_map;
use crate::mount_attributes::{self, Change};
use crate::spec::{Bind, HostPart};
use crate::supervise::View;

/// See the module.
#[derive(Debug)]
pub(crate) struct Trees {
    /// None: it is made of mounts of its own.
    pub(super) rootfs: Option<OwnedFd>,
    /// One for each bind, in their order.
    pub(super) volumes: Vec<OwnedFd>,
}

/// Descriptors of the process that lends them.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub(crate) struct LentTrees {
    rootfs: RawFd,
    volumes: Vec<RawFd>,
}

impl Trees {
    /// Copies what the configuration of a bundle names; its root file system only if `with_rootfs`.
    pub(crate) fn copy(
        bundle: &Path,
        host: &HostPart,
        with_rootfs: bool,
    ) -> Result<Self, RootfsError> {
        let rootfs = with_rootfs
            .then(|| copy_directory(bundle, &host.rootfs))
            .transpose()
            .map_err(|source| RootfsError::Rootfs {
                path: bundle.join(&host.rootfs),
                source,
            })?;
        let mut volumes = Vec::with_capacity(host.binds.len());
        for bind in &host.binds {
            let path = bundle.join(&bind.source);
            let failed = |source| RootfsError::Source {
                path: path.clone(),
                source,
            };
            let source = open_beneath(bundle, &bind.source, OFlags::empty()).map_err(failed)?;
            let stat = rustix::fs::fstat(&source).map_err(|e| failed(e.into()))?;
            let kind = FileType::from_raw_mode(stat.st_mode);
            if !matches!(kind, FileType::Directory | FileType::RegularFile) {
                let kind = kind_name(kind);
                return Err(RootfsError::Kind { path, kind });
            }
            volumes.push(copy_volume(&source, bind).map_err(failed)?);
        }
        Ok(Self { rootfs, volumes })
    }

    /// To be shown: the root file system, and volumes where the container has them.
    pub(crate) fn into_view(self, host: &HostPart, staging: PathBuf) -> Option<View> {
        let places = host.binds.iter().map(|bind| bind.destination.clone());
        Some(View {
            rootfs: self.rootfs?,
            volumes: self.volumes.into_iter().zip(places).collect(),
            staging,
        })
    }

    /// For another process to take them by; None without a root file system.
    pub(crate) fn lent(&self) -> Option<LentTrees> {
        Some(LentTrees {
            rootfs: self.rootfs.as_ref()?.as_raw_fd(),
            volumes: self.volumes.iter().map(OwnedFd::as_raw_fd).collect(),
        })
    }

    /// Takes those that process `pid` has made of the same configuration.
    pub(crate) fn take(pid: i32, lent: &LentTrees, host: &HostPart) -> Result<Self, RootfsError> {
        if lent.volumes.len() != host.binds.len() {
            let error = io::Error::other("config.json has changed meanwhile");
            return Err(RootfsError::Lent(error));
        }
        let taken = || {
            let pid = Pid::from_raw(pid).ok_or(io::ErrorKind::NotFound)?;
            let process = rustix::process::pidfd_open(pid, PidfdFlags::empty())?;
            let take = |fd: &RawFd| -> io::Result<OwnedFd> {
                let flags = PidfdGetfdFlags::empty();
                Ok(rustix::process::pidfd_getfd(&process, *fd, flags)?)
            };
            Ok(Self {
                rootfs: Some(take(&lent.rootfs)?),
                volumes: lent.volumes.iter().map(take).collect::<io::Result<_>>()?,
            })
        };
        taken().map_err(RootfsError::Lent)
    }
}

/// A copy of the directory `path` and all that is mounted in it; one that is relative is resolved beneath `bundle`.
fn copy_directory(bundle: &Path, path: &Path) -> io::Result<OwnedFd> {
    let directory = Bind {
        recursive: true,
        ..Bind::default()
    };
    copy_volume(&open_beneath(bundle, path, OFlags::DIRECTORY)?, &directory)
}

/// A copy of what is at the absolute path `path`, and as `bind` has it.
pub(super) fn copy_of(path: &Path, bind: &Bind) -> io::Result<OwnedFd> {
    copy_volume(&open_beneath(path, path, OFlags::empty())?, bind)
}

fn copy_volume(source: &OwnedFd, bind: &Bind) -> io::Result<OwnedFd> {
    let tree = clone_tree(source, bind.recursive)?;
    let propagation = if bind.follows_host {
        Change::Slave
    } else {
        Change::Private
    };
    mount_attributes::set(tree.as_fd(), propagation, true)?;
    if let Some(map) = &bind.id_map {
        id_map::map_owners(tree.as_fd(), map)?;
    }
    if bind.read_only {
        mount_attributes::set(tree.as_fd(), Change::ReadOnly, false)?;
    }
    Ok(tree)
}

/// Opens `path`; one that is relative is resolved beneath `bundle` and may not lead out of it.
fn open_beneath(bundle: &Path, path: &Path, flags: OFlags) -> io::Result<OwnedFd> {
    let flags = flags | OFlags::PATH | OFlags::CLOEXEC;
    if path.is_absolute() {
        return Ok(rustix::fs::open(path, flags, Mode::empty())?);
    }
    let directory = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let bundle = rustix::fs::openat(CWD, bundle, directory, Mode::empty())?;
    Ok(rustix::fs::openat2(
        &bundle,
        path,
        flags,
        Mode::empty(),
        ResolveFlags::BENEATH,
    )?)
}

/// A copy of the mount that `source` is in, with `source` as its root; nowhere yet.
fn clone_tree(source: &OwnedFd, recursive: bool) -> io::Result<OwnedFd> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH;
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    Ok(rustix::mount::open_tree(source, "", flags)?)
}

fn kind_name(kind: FileType) -> &'static str {
    match kind {
        FileType::BlockDevice | FileType::CharacterDevice => "device",
        FileType::Socket => "socket",
        FileType::Fifo => "FIFO",
        _ => "special file",
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn relative_paths_stay_in_the_bundle() {
        let bundle = tempfile::tempdir().unwrap();
        fs::create_dir(bundle.path().join("rootfs")).unwrap();
        std::os::unix::fs::symlink("/etc", bundle.path().join("link")).unwrap();
        let open = |path: &str| open_beneath(bundle.path(), Path::new(path), OFlags::DIRECTORY);
        assert!(open("rootfs").is_ok());
        assert!(open("rootfs/../rootfs").is_ok());
        for path in ["link", "../", "rootfs/../../x"] {
            assert!(open(path).is_err(), "{path}");
        }
        assert_eq!(open("none").unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
