//! A container's root file system and volumes, as mounts in the shared directory.
//!
//! ```text
//!   shared/                 tmpfs, a shared mount: what is mounted below it reaches the VMM's jail
//!     <container>/rootfs    the root file system
//!     <container>/mounts/N  the N-th bind mount: a directory or a single file
//! ```
//!
//! All of it is in a mount namespace of the supervisor's own, so the host's mount table never shows it and it vanishes
//! with the supervisor and the VMM. What is mounted are copies that are finished before ([`Trees`]): flags set later do not reach the
//! jail's copy. A guest may have changed whatever it sees there: it is used by descriptor only ([`Place`]), and its removal never goes into a
//! directory. Ways to fail: those of the copies, and a file system that the kernel does not mount.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use containerd_shim_protos::api;
use nix::sched::CloneFlags;
use rustix::fs::{FileType, Mode, OFlags};
use rustix::mount::{MountFlags, MountPropagationFlags};

use crate::mount_attributes::{self, Change};
use crate::spec::{Bind, HostPart, ReadOnly};
use crate::state::StateDir;
use crate::supervise::View;
use kernel_files::Table;
use place::Place;

mod kernel_files;
mod place;
mod trees;

#[cfg(fuzzing)]
pub(crate) use kernel_files::read_table as read_mount_table;
pub(crate) use trees::{LentTrees, Trees};

/// Longest option string `mount(2)` takes: one page.
const MOUNT_DATA_MAX_BYTES: usize = 4095;

/// The share's own file system. The state directory is private; in the guest, users of a user namespace pass through here.
///
/// It holds directories and empty files, which take no page: its size is the smallest that leaves them room. Each of them is an inode of about
/// a kibibyte of the host's memory: 16 Ki of them, three and one per volume for a container, are a thousand containers with a dozen volumes.
const TMPFS_OPTIONS: &CStr = c"mode=0755,size=64k,nr_inodes=16384";

/// The shared directory of a sandbox, mounted.
#[derive(Clone, Debug)]
pub(crate) struct Share {
    root: PathBuf,
    /// A directory to build views on.
    staging: PathBuf,
    fds: Arc<Fds>,
}

/// What the share is used by.
#[derive(Debug)]
struct Fds {
    /// The directory that it is mounted on.
    below: OwnedFd,
    /// Its own uppermost directory.
    top: OwnedFd,
    /// A directory outside of it, to mount file systems on before a guest sees them.
    staging: OwnedFd,
}

/// One container's part of the share. Removed by [`ContainerFiles::remove`] only.
#[derive(Debug)]
pub(crate) struct ContainerFiles {
    id: String,
    share: Arc<Fds>,
    /// Its directory.
    dir: Option<Place>,
    rootfs: Option<Place>,
    /// The directory of its volumes.
    mounts: Option<Place>,
    volumes: Vec<Place>,
    /// What is attached there, for views.
    trees: Trees,
}

/// Why a container's files cannot be offered to the guest.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RootfsError {
    #[error("cannot set up the shared directory {}", path.display())]
    Share {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot make a place in the shared directory for {what}")]
    Place {
        what: String,
        #[source]
        source: io::Error,
    },
    #[error("the root file system {} cannot be used", path.display())]
    Rootfs {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("the mount source {} cannot be used", path.display())]
    Source {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("the mount source {} is a {kind}, which ends at the border of a VM", path.display())]
    Kind { path: PathBuf, kind: &'static str },
    #[error("cannot read the mount table")]
    Table(#[source] io::Error),
    #[error("cannot take over the container's files")]
    Lent(#[source] io::Error),
    #[error("cannot show the container on the host")]
    View(#[source] io::Error),
    #[error("cannot mount {} of type {typ}", what.display())]
    Mount {
        what: PathBuf,
        typ: String,
        #[source]
        source: io::Error,
    },
}

impl Share {
    /// Enters a mount namespace of its own and mounts the shared directory there. To be called once, before any thread.
    pub(crate) fn enter(state: &StateDir) -> Result<Self, RootfsError> {
        Self::mount(state).map_err(|source| RootfsError::Share {
            path: state.shared(),
            source,
        })
    }

    fn mount(state: &StateDir) -> io::Result<Self> {
        nix::sched::unshare(CloneFlags::CLONE_NEWNS)?;
        let rslave = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
        rustix::mount::mount_change("/", rslave)?;
        let below = directory(&state.shared())?;
        let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
        let target = place::path_of(below.as_fd());
        rustix::mount::mount("husk", target, "tmpfs", flags, TMPFS_OPTIONS)?;
        let share = Self::at(state, below)?;
        mount_attributes::set(share.fds.top.as_fd(), Change::Shared, false)?;
        Ok(share)
    }

    fn at(state: &StateDir, below: OwnedFd) -> io::Result<Self> {
        let fds = Fds {
            below,
            top: directory(&state.shared())?,
            staging: directory(&state.staging())?,
        };
        Ok(Self {
            root: state.shared(),
            staging: state.staging(),
            fds: Arc::new(fds),
        })
    }

    /// Directories that nothing is mounted on.
    #[cfg(test)]
    pub(crate) fn fake(state: &StateDir) -> Self {
        Self::at(state, directory(&state.shared()).unwrap()).unwrap()
    }

    /// The directory to be served to the guest.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// Its own file system.
    fn device(&self) -> io::Result<kernel_files::Device> {
        let device = rustix::fs::fstat(&self.fds.top)?.st_dev;
        Ok((rustix::fs::major(device), rustix::fs::minor(device)))
    }

    /// Takes the mounts of the sandbox's own out of the way, so that the state directory can be removed.
    pub(crate) fn leave(&self) {
        for fd in [&self.fds.below, &self.fds.staging] {
            if let Err(e) = place::detach(fd.as_fd()) {
                tracing::warn!("{} stays mounted: {e}", self.root.display());
            }
        }
    }

    /// What of `files` is to be seen on the host.
    pub(crate) fn view(&self, files: &ContainerFiles, host: &HostPart) -> io::Result<View> {
        let trees = files.trees.copy_attached()?;
        let view = trees.into_view(host, self.staging.clone());
        view.ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// Offers the files of container `id`: `trees`, and if these have no root file system the mounts `rootfs` for it.
    pub(crate) fn add(
        &self,
        id: &str,
        mut trees: Trees,
        host: &HostPart,
        rootfs: &[api::Mount],
    ) -> Result<ContainerFiles, RootfsError> {
        if trees.rootfs.is_none() {
            trees.rootfs = Some(self.mount_rootfs(rootfs)?);
        }
        let mut files = ContainerFiles {
            id: id.to_owned(),
            share: Arc::clone(&self.fds),
            dir: None,
            rootfs: None,
            mounts: None,
            volumes: Vec::new(),
            trees,
        };
        if let Err(e) = files.attach(host) {
            files.remove();
            return Err(e);
        }
        Ok(files)
    }

    /// Makes one mount, attached nowhere, of those that containerd describes a root file system by.
    fn mount_rootfs(&self, mounts: &[api::Mount]) -> Result<OwnedFd, RootfsError> {
        let staging = self.fds.staging.as_fd();
        let made = mounts
            .iter()
            .try_for_each(|mount| self.stage(mount))
            .and_then(|()| {
                let staged = directory(&self.staging).and_then(|fd| trees::copy_attached(&fd));
                staged.map_err(|source| RootfsError::Share {
                    path: self.staging.clone(),
                    source,
                })
            });
        if let Err(e) = place::detach(staging) {
            tracing::warn!("{} stays mounted: {e}", self.staging.display());
        }
        made
    }

    /// Mounts one of them where no guest sees it.
    fn stage(&self, mount: &api::Mount) -> Result<(), RootfsError> {
        let failed = |source| RootfsError::Mount {
            what: PathBuf::from(&mount.source),
            typ: mount.type_.clone(),
            source,
        };
        let staging = self.fds.staging.as_fd();
        if mount.type_ == "bind" {
            let has = |name: &str| mount.options.iter().any(|option| option == name);
            let bind = Bind {
                source: PathBuf::from(&mount.source),
                read_only: if has("ro") {
                    ReadOnly::Itself
                } else {
                    ReadOnly::Nothing
                },
                recursive: has("rbind"),
                ..Bind::default()
            };
            return trees::copy_of(&bind, self)
                .and_then(|tree| place::attach(&tree, staging))
                .map_err(failed);
        }
        let (flags, data) = mount_options(&mount.options);
        if data.len() > MOUNT_DATA_MAX_BYTES {
            return Err(failed(io::ErrorKind::ArgumentListTooLong.into()));
        }
        let data = CString::new(data).map_err(|e| failed(e.into()))?;
        rustix::mount::mount(
            mount.source.as_str(),
            place::path_of(staging),
            mount.type_.as_str(),
            flags,
            data.as_c_str(),
        )
        .map_err(|e| failed(e.into()))
    }
}

impl ContainerFiles {
    /// A container's files without mounts.
    #[cfg(test)]
    pub(crate) fn fake(share: &Share, id: &str) -> Self {
        Self {
            id: id.to_owned(),
            share: Arc::clone(&share.fds),
            dir: None,
            rootfs: None,
            mounts: None,
            volumes: Vec::new(),
            trees: Trees::default(),
        }
    }

    fn attach(&mut self, host: &HostPart) -> Result<(), RootfsError> {
        let failed = |source| RootfsError::Place {
            what: self.id.clone(),
            source,
        };
        let dir = self
            .dir
            .insert(Place::directory(&self.share.top, &self.id).map_err(failed)?);
        let rootfs = Place::directory(dir, "rootfs").map_err(failed)?;
        let rootfs = self.rootfs.insert(rootfs);
        let mounts = Place::directory(dir, "mounts").map_err(failed)?;
        let mounts = self.mounts.insert(mounts);
        if let Some(tree) = &self.trees.rootfs {
            rootfs.attach(tree).map_err(|source| RootfsError::Rootfs {
                path: host.rootfs.clone(),
                source,
            })?;
        }
        for (number, (bind, tree)) in host.binds.iter().zip(&self.trees.volumes).enumerate() {
            let failed = |source| RootfsError::Source {
                path: bind.source.clone(),
                source,
            };
            let place = place_for(tree, mounts, &number.to_string()).map_err(failed)?;
            let attached = place.attach(tree);
            self.volumes.push(place);
            attached.map_err(failed)?;
        }
        Ok(())
    }

    /// Where in each bind of `host` something else is mounted for good, those outside first. In one that follows the host, mounts
    /// come and go, and a guest that keeps one would keep the host from unmounting it.
    pub(crate) fn mounts_below(&self, host: &HostPart) -> Result<Vec<Vec<PathBuf>>, RootfsError> {
        let keeps = |bind: &Bind| bind.recursive && !bind.follows_host;
        if !host.binds.iter().any(keeps) {
            return Ok(Vec::new());
        }
        let table = Table::read(None).map_err(RootfsError::Table)?;
        let volumes = host.binds.iter().zip(&self.trees.volumes);
        let below = volumes.map(|(bind, tree)| match keeps(bind) {
            true => table.places_in(tree),
            false => Ok(Vec::new()),
        });
        below.collect::<io::Result<_>>().map_err(RootfsError::Table)
    }

    /// Takes the container's files away from the guest. What cannot be taken away stays until the share itself vanishes.
    pub(crate) fn remove(mut self) {
        let mut left = Vec::new();
        while let Some(volume) = self.volumes.pop() {
            if let Some(mounts) = &self.mounts {
                left.extend(volume.remove(mounts).err());
            }
        }
        if let Some(dir) = self.dir {
            for place in [self.mounts, self.rootfs].into_iter().flatten() {
                left.extend(place.remove(&dir).err());
            }
            left.extend(dir.remove(&self.share.top).err());
        }
        if let Some(first) = left.into_iter().next() {
            let error = anyhow::Error::from(first);
            tracing::warn!("files of {} are left in the share: {error:#}", self.id);
        }
    }
}

/// A place for a mount of this kind.
fn place_for(tree: &OwnedFd, parent: &Place, name: &str) -> io::Result<Place> {
    let stat = rustix::fs::fstat(tree)?;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => Place::directory(parent, name),
        _ => Place::file(parent, name),
    }
}

/// A directory of the supervisor's own, or what is mounted on it.
fn directory(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, Mode::empty())?)
}

/// Splits mount options into flags and the file system's own data (pure).
fn mount_options(options: &[String]) -> (MountFlags, String) {
    let mut flags = MountFlags::empty();
    let mut data = Vec::new();
    for option in options {
        match option.as_str() {
            "ro" => flags |= MountFlags::RDONLY,
            "nosuid" => flags |= MountFlags::NOSUID,
            "nodev" => flags |= MountFlags::NODEV,
            "noexec" => flags |= MountFlags::NOEXEC,
            "noatime" => flags |= MountFlags::NOATIME,
            "nodiratime" => flags |= MountFlags::NODIRATIME,
            "relatime" => flags |= MountFlags::RELATIME,
            "sync" => flags |= MountFlags::SYNCHRONOUS,
            "rw" | "suid" | "dev" | "exec" | "defaults" | "async" => {}
            other => data.push(other),
        }
    }
    (flags, data.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_split_into_flags_and_data() {
        let options = ["ro", "rw", "lowerdir=/a:/b", "nosuid", "index=off"].map(String::from);
        let (flags, data) = mount_options(&options);
        assert_eq!(flags, MountFlags::RDONLY | MountFlags::NOSUID);
        assert_eq!(data, "lowerdir=/a:/b,index=off");
    }
}
