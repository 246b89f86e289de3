//! A container's root file system and volumes, as mounts in the shared directory.
//!
//! ```text
//!   shared/                 tmpfs, a shared mount: what is mounted below it reaches the VMM's jail
//!     <container>/rootfs    the root file system
//!     <container>/mounts/N  the N-th bind mount: a directory or a single file
//!   staging                 where a mount gets its flags before it is moved below shared/
//! ```
//!
//! All of it is in a mount namespace of the supervisor's own, so the host's mount table never shows it and it vanishes
//! with the supervisor and the VMM. A mount is finished in `staging` because flags set later do not reach the jail's copy.
//! Ways to fail: a source is missing, leads out of the bundle, or is nothing a guest can use.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use containerd_shim_protos::api;
use nix::sched::CloneFlags;
use rustix::fs::{CWD, FileType, StatVfsMountFlags};
use rustix::mount::{MountFlags, MountPropagationFlags, MoveMountFlags, UnmountFlags};

use crate::id_map;
use crate::spec::{Bind, HostPart};
use crate::state::StateDir;
use crate::supervise::{View, Volume};

mod trees;

pub(crate) use trees::{LentTrees, Trees};

/// Longest option string `mount(2)` takes: one page.
const MOUNT_DATA_MAX_BYTES: usize = 4095;

/// The shared directory of a sandbox, mounted.
#[derive(Clone, Debug)]
pub(crate) struct Share {
    root: PathBuf,
    staging: PathBuf,
}

/// One container's part of the share. Removed by [`ContainerFiles::remove`] only.
#[derive(Debug)]
pub(crate) struct ContainerFiles {
    dir: PathBuf,
    /// Mount points, in the order they were made.
    mounted: Vec<PathBuf>,
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
        let share = Self {
            root: state.shared(),
            staging: state.path().join("staging"),
        };
        share.mount().map_err(|source| RootfsError::Share {
            path: share.root.clone(),
            source,
        })?;
        Ok(share)
    }

    fn mount(&self) -> io::Result<()> {
        nix::sched::unshare(CloneFlags::CLONE_NEWNS)?;
        let rslave = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
        rustix::mount::mount_change("/", rslave)?;
        let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
        // The state directory is private; in the guest, users of a user namespace pass through here.
        rustix::mount::mount("husk", &self.root, "tmpfs", flags, c"mode=0755")?;
        rustix::mount::mount_change(&self.root, MountPropagationFlags::SHARED)?;
        // A file and a directory to mount on, private as the whole of a new tmpfs is.
        DirBuilder::new().mode(0o700).create(&self.staging)?;
        rustix::mount::mount("husk", &self.staging, "tmpfs", flags, c"mode=0700")?;
        rustix::mount::mount_change(&self.staging, MountPropagationFlags::PRIVATE)?;
        fs::create_dir(self.staging.join("dir"))?;
        File::create(self.staging.join("file"))?;
        Ok(())
    }

    /// Directories that nothing is mounted on.
    #[cfg(test)]
    pub(crate) fn fake(state: &StateDir) -> Self {
        Self {
            root: state.shared(),
            staging: state.path().join("staging"),
        }
    }

    /// The directory to be served to the guest.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// Takes the mounts of the sandbox's own out of the way, so that the state directory can be removed.
    pub(crate) fn leave(&self) {
        for path in [&self.root, &self.staging] {
            if let Err(e) = rustix::mount::unmount(path, UnmountFlags::DETACH) {
                tracing::warn!("cannot unmount {}: {e}", path.display());
            }
        }
    }

    /// What of `files` is to be seen on the host.
    pub(crate) fn view(&self, files: &ContainerFiles, host: &HostPart) -> View {
        let mounts = files.dir.join("mounts");
        let volumes = host.binds.iter().enumerate();
        View {
            rootfs: files.dir.join("rootfs"),
            volumes: volumes
                .map(|(number, bind)| Volume {
                    source: mounts.join(number.to_string()),
                    destination: bind.destination.clone(),
                    read_only: false,
                })
                .collect(),
            staging: self.staging.join("dir"),
        }
    }

    /// Offers the files of container `id`: `trees`, and if these have no root file system the mounts `rootfs` for it.
    pub(crate) fn add(
        &self,
        id: &str,
        trees: &Trees,
        host: &HostPart,
        rootfs: &[api::Mount],
    ) -> Result<ContainerFiles, RootfsError> {
        let mut files = ContainerFiles {
            dir: self.root.join(id),
            mounted: Vec::new(),
        };
        let added = self.add_all(&mut files, trees, host, rootfs);
        if let Err(e) = added {
            files.remove();
            return Err(e);
        }
        Ok(files)
    }

    fn add_all(
        &self,
        files: &mut ContainerFiles,
        trees: &Trees,
        host: &HostPart,
        rootfs: &[api::Mount],
    ) -> Result<(), RootfsError> {
        let rootfs_dir = files.dir.join("rootfs");
        let mounts_dir = files.dir.join("mounts");
        for dir in [&files.dir, &rootfs_dir, &mounts_dir] {
            fs::create_dir(dir).map_err(|source| RootfsError::Share {
                path: dir.clone(),
                source,
            })?;
        }
        if let Some(tree) = &trees.rootfs {
            self.attach_rootfs(tree, &rootfs_dir)?;
            files.mounted.push(rootfs_dir);
        } else {
            for mount in rootfs {
                self.mount_rootfs(mount, &rootfs_dir)?;
                files.mounted.push(rootfs_dir.clone());
            }
        }
        for (number, (bind, tree)) in host.binds.iter().zip(&trees.volumes).enumerate() {
            let target = mounts_dir.join(number.to_string());
            self.attach_volume(tree, bind, &target)?;
            files.mounted.push(target);
        }
        Ok(())
    }

    fn attach_rootfs(&self, tree: &OwnedFd, target: &Path) -> Result<(), RootfsError> {
        let plain = Bind {
            recursive: true,
            ..Bind::default()
        };
        self.attach(tree, &plain, &self.staging.join("dir"), target)
            .map_err(|source| RootfsError::Rootfs {
                path: target.to_owned(),
                source,
            })
    }

    fn attach_volume(&self, tree: &OwnedFd, bind: &Bind, target: &Path) -> Result<(), RootfsError> {
        let failed = |source| RootfsError::Source {
            path: bind.source.clone(),
            source,
        };
        let stat = rustix::fs::fstat(tree).map_err(|e| failed(e.into()))?;
        let staging = match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => {
                fs::create_dir(target).map_err(failed)?;
                self.staging.join("dir")
            }
            _ => {
                File::create(target).map_err(failed)?;
                self.staging.join("file")
            }
        };
        self.attach(tree, bind, &staging, target).map_err(failed)
    }

    /// Attaches `tree` at `target` by way of `staging`.
    fn attach(&self, tree: &OwnedFd, bind: &Bind, staging: &Path, target: &Path) -> io::Result<()> {
        if let Some(map) = &bind.id_map {
            id_map::map_owners(tree.as_fd(), map)?;
        }
        let from_itself = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
        rustix::mount::move_mount(tree, "", CWD, staging, from_itself)?;
        let finished = finish(tree, bind, staging)
            .and_then(|()| Ok(rustix::mount::mount_move(staging, target)?));
        if finished.is_err() {
            // Best effort: the error to be told is the first one.
            let _ = rustix::mount::unmount(staging, UnmountFlags::DETACH);
        }
        finished
    }

    /// One of the mounts that containerd describes a root file system by.
    fn mount_rootfs(&self, mount: &api::Mount, target: &Path) -> Result<(), RootfsError> {
        let failed = |source| RootfsError::Mount {
            what: PathBuf::from(&mount.source),
            typ: mount.type_.clone(),
            source,
        };
        if mount.type_ == "bind" {
            let has = |name: &str| mount.options.iter().any(|option| option == name);
            let bind = Bind {
                read_only: has("ro"),
                recursive: has("rbind"),
                ..Bind::default()
            };
            let source = Path::new(&mount.source);
            return trees::copy_beneath(Path::new("/"), source, bind.recursive)
                .and_then(|tree| self.attach(&tree, &bind, &self.staging.join("dir"), target))
                .map_err(failed);
        }
        let (flags, data) = mount_options(&mount.options);
        if data.len() > MOUNT_DATA_MAX_BYTES {
            return Err(failed(io::ErrorKind::ArgumentListTooLong.into()));
        }
        let data = std::ffi::CString::new(data).map_err(|e| failed(e.into()))?;
        rustix::mount::mount(
            mount.source.as_str(),
            target,
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
            dir: share.root.join(id),
            mounted: Vec::new(),
        }
    }

    /// Takes the container's files away from the guest.
    pub(crate) fn remove(self) {
        for path in self.mounted.iter().rev() {
            if let Err(e) = rustix::mount::unmount(path, UnmountFlags::DETACH) {
                tracing::warn!("cannot unmount {}: {e}", path.display());
            }
        }
        match fs::remove_dir_all(&self.dir) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                tracing::warn!("cannot remove {}: {e}", self.dir.display());
            }
            _ => {}
        }
    }
}

/// Gives the mount at `staging` its propagation and flags.
fn finish(tree: &OwnedFd, bind: &Bind, staging: &Path) -> io::Result<()> {
    if !bind.follows_host {
        let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
        rustix::mount::mount_change(staging, private)?;
    }
    if bind.read_only {
        let flags = MountFlags::BIND | MountFlags::RDONLY | kept_flags(tree)?;
        rustix::mount::mount_remount(staging, flags, c"")?;
    }
    Ok(())
}

/// A remount replaces all flags of a mount; these are to stay as the host has them.
fn kept_flags(tree: &OwnedFd) -> io::Result<MountFlags> {
    let has = rustix::fs::fstatvfs(tree.as_fd())?.f_flag;
    let mut kept = MountFlags::empty();
    for (flag, mount_flag) in [
        (StatVfsMountFlags::NOSUID, MountFlags::NOSUID),
        (StatVfsMountFlags::NODEV, MountFlags::NODEV),
        (StatVfsMountFlags::NOEXEC, MountFlags::NOEXEC),
        (StatVfsMountFlags::NOATIME, MountFlags::NOATIME),
    ] {
        if has.contains(flag) {
            kept |= mount_flag;
        }
    }
    Ok(kept)
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
