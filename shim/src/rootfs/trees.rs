//! Where a container's files come from: copies of the host's mounts that are attached nowhere yet.
//!
//! Who makes them must see the mounts that its caller sees; who attaches them need not, and has them lent: engines mount root file
//! systems where a supervisor that was there before does not see them. A copy gets its flags and owners, and never gives back to
//! the host what is mounted or unmounted in it, before it is seen by anybody. Devices and set-user-id programs in it are none to the VMM, who
//! serves it: what they mean in the guest is up to the guest's kernel. Nothing in it is a file system of the host's kernel
//! ([`kernel_files`](super::kernel_files)). Ways to fail: a source is missing, leads out of the bundle, or is nothing a guest can use.

use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd, RawFd};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags};
use rustix::mount::OpenTreeFlags;
use serde::{Deserialize, Serialize};

use super::kernel_files::{self, Device, Table};
use super::{RootfsError, Share};
use crate::id_map;
use crate::mount_attributes::{self, Change};
use crate::spec::{Bind, HostPart, ReadOnly};
use crate::stdio::Lender;
use crate::supervise::View;

/// See the module.
#[derive(Debug, Default)]
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
    /// Copies what the configuration of a bundle names; its root file system only if `with_rootfs`. `share` is there in the supervisor.
    pub(crate) fn copy(
        bundle: &Path,
        host: &HostPart,
        with_rootfs: bool,
        share: Option<&Share>,
    ) -> Result<Self, RootfsError> {
        let share = share.map(Share::device).transpose();
        let table = share.and_then(Table::read).map_err(RootfsError::Table)?;
        let rootfs = with_rootfs
            .then(|| copy_directory(bundle, &host.rootfs, &table))
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
            volumes.push(copy_volume(&source, bind, &table).map_err(failed)?);
        }
        Ok(Self { rootfs, volumes })
    }

    /// Copies of what has been attached in the meantime, with what was mounted in it since.
    pub(super) fn copy_attached(&self) -> io::Result<Self> {
        Ok(Self {
            rootfs: self.rootfs.as_ref().map(copy_attached).transpose()?,
            volumes: self
                .volumes
                .iter()
                .map(copy_attached)
                .collect::<io::Result<_>>()?,
        })
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

    /// Takes those that a process has made of the same configuration.
    pub(crate) fn take(
        lender: &Lender,
        lent: &LentTrees,
        host: &HostPart,
    ) -> Result<Self, RootfsError> {
        if lent.volumes.len() != host.binds.len() {
            let error = io::Error::other("config.json has changed meanwhile");
            return Err(RootfsError::Lent(error));
        }
        let volumes = lent.volumes.iter().map(|fd| lender.take(*fd));
        let taken = lender.take(lent.rootfs).and_then(|rootfs| {
            Ok(Self {
                rootfs: Some(rootfs),
                volumes: volumes.collect::<io::Result<_>>()?,
            })
        });
        taken.map_err(RootfsError::Lent)
    }
}

/// A copy of the directory `path` and all that is mounted in it; one that is relative is resolved beneath `bundle`.
fn copy_directory(bundle: &Path, path: &Path, table: &Table) -> io::Result<OwnedFd> {
    let all = Bind {
        source: path.to_owned(),
        recursive: true,
        ..Bind::default()
    };
    copy_volume(&open_beneath(bundle, path, OFlags::DIRECTORY)?, &all, table)
}

/// A copy of what is at the absolute path `bind.source`.
pub(super) fn copy_of(bind: &Bind, share: &Share) -> io::Result<OwnedFd> {
    let source = open_beneath(&bind.source, &bind.source, OFlags::empty())?;
    copy_volume(&source, bind, &Table::read(Some(share.device()?))?)
}

/// A copy of a mount that is the supervisor's own, with all that is mounted in it.
pub(super) fn copy_attached(mount: &OwnedFd) -> io::Result<OwnedFd> {
    let tree = clone_tree(mount, true)?;
    mount_attributes::set(tree.as_fd(), Change::Private, true)?;
    mount_attributes::set(tree.as_fd(), Change::Untrusted, true)?;
    Ok(tree)
}

fn copy_volume(source: &OwnedFd, bind: &Bind, table: &Table) -> io::Result<OwnedFd> {
    if let Some(kind) = table.refuses(source)? {
        let text = format!("it is in a file system of the host's kernel or husk's ({kind})");
        return Err(io::Error::new(io::ErrorKind::Unsupported, text));
    }
    let mut tree = clone_tree(source, bind.recursive)?;
    let propagation = if bind.follows_host {
        Change::Slave
    } else {
        Change::Private
    };
    mount_attributes::set(tree.as_fd(), propagation, true)?;
    if bind.recursive && table.may_have_below(source)? {
        tree = without_kernel_files(&tree, &bind.source, table.share())?;
    }
    mount_attributes::set(tree.as_fd(), Change::Untrusted, true)?;
    if let Some(map) = &bind.id_map {
        id_map::map_owners(tree.as_fd(), map)?;
    }
    if bind.read_only != ReadOnly::Nothing {
        let with_all_below = bind.read_only == ReadOnly::WithAllBelow;
        mount_attributes::set(tree.as_fd(), Change::ReadOnly, with_all_below)?;
    }
    Ok(tree)
}

fn without_kernel_files(
    tree: &OwnedFd,
    source: &Path,
    share: Option<Device>,
) -> io::Result<OwnedFd> {
    let (tree, out) = kernel_files::left_out(tree, share)?;
    if !out.is_empty() {
        let paths: Vec<_> = out.iter().map(|path| path.display().to_string()).collect();
        tracing::warn!(
            "file systems of the host's kernel are left out of the mount {}: {}",
            source.display(),
            paths.join(", ")
        );
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
