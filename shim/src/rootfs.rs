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
//! jail's copy. Ways to fail: those of the copies, and a file system that the kernel does not mount.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use containerd_shim_protos::api;
use nix::sched::CloneFlags;
use rustix::fs::{CWD, FileType};
use rustix::mount::{MountFlags, MountPropagationFlags, MoveMountFlags, UnmountFlags};

use crate::spec::{Bind, HostPart};
use crate::state::StateDir;
use crate::supervise::View;

mod trees;

pub(crate) use trees::{LentTrees, Trees};

/// Longest option string `mount(2)` takes: one page.
const MOUNT_DATA_MAX_BYTES: usize = 4095;

/// The shared directory of a sandbox, mounted.
#[derive(Clone, Debug)]
pub(crate) struct Share {
    root: PathBuf,
    /// A directory to build views on.
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
        DirBuilder::new().mode(0o700).create(&self.staging)
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
        if let Err(e) = rustix::mount::unmount(&self.root, UnmountFlags::DETACH) {
            tracing::warn!("cannot unmount {}: {e}", self.root.display());
        }
    }

    /// What of `files` is to be seen on the host.
    pub(crate) fn view(&self, files: &ContainerFiles, host: &HostPart) -> io::Result<View> {
        let plain = Bind {
            recursive: true,
            ..Bind::default()
        };
        let mounts = files.dir.join("mounts");
        let volumes = host.binds.iter().enumerate().map(|(number, bind)| {
            let tree = trees::copy_of(&mounts.join(number.to_string()), &plain)?;
            Ok((tree, bind.destination.clone()))
        });
        Ok(View {
            rootfs: trees::copy_of(&files.dir.join("rootfs"), &plain)?,
            volumes: volumes.collect::<io::Result<_>>()?,
            staging: self.staging.clone(),
        })
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
            attach(tree, &rootfs_dir).map_err(|source| RootfsError::Rootfs {
                path: rootfs_dir.clone(),
                source,
            })?;
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

    fn attach_volume(&self, tree: &OwnedFd, bind: &Bind, target: &Path) -> Result<(), RootfsError> {
        let attached = || {
            let stat = rustix::fs::fstat(tree)?;
            match FileType::from_raw_mode(stat.st_mode) {
                FileType::Directory => fs::create_dir(target)?,
                _ => drop(File::create(target)?),
            }
            attach(tree, target)
        };
        attached().map_err(|source| RootfsError::Source {
            path: bind.source.clone(),
            source,
        })
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
            return trees::copy_of(Path::new(&mount.source), &bind)
                .and_then(|tree| attach(&tree, target))
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

/// Attaches a mount that is nowhere yet.
fn attach(tree: &OwnedFd, target: &Path) -> io::Result<()> {
    let itself = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    Ok(rustix::mount::move_mount(tree, "", CWD, target, itself)?)
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
