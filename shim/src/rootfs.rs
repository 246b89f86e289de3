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
use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags, StatVfsMountFlags};
use rustix::mount::{
    MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags,
};

use crate::id_map;
use crate::spec::{Bind, HostPart};
use crate::state::StateDir;
use crate::supervise::{View, Volume};

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

    /// Offers the files of container `id`. `rootfs` holds the mounts that make its root file system, instead of `root.path`.
    pub(crate) fn add(
        &self,
        id: &str,
        bundle: &Path,
        host: &HostPart,
        rootfs: &[api::Mount],
    ) -> Result<ContainerFiles, RootfsError> {
        let mut files = ContainerFiles {
            dir: self.root.join(id),
            mounted: Vec::new(),
        };
        let added = self.add_all(&mut files, bundle, host, rootfs);
        if let Err(e) = added {
            files.remove();
            return Err(e);
        }
        Ok(files)
    }

    fn add_all(
        &self,
        files: &mut ContainerFiles,
        bundle: &Path,
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
        if rootfs.is_empty() {
            self.bind_rootfs(bundle, &host.rootfs, &rootfs_dir)?;
            files.mounted.push(rootfs_dir);
        } else {
            for mount in rootfs {
                self.mount_rootfs(mount, &rootfs_dir)?;
                files.mounted.push(rootfs_dir.clone());
            }
        }
        for (number, bind) in host.binds.iter().enumerate() {
            let target = mounts_dir.join(number.to_string());
            self.bind_volume(bundle, bind, &target)?;
            files.mounted.push(target);
        }
        Ok(())
    }

    fn bind_rootfs(&self, bundle: &Path, path: &Path, target: &Path) -> Result<(), RootfsError> {
        let failed = |source| RootfsError::Rootfs {
            path: bundle.join(path),
            source,
        };
        let source = open_beneath(bundle, path, OFlags::DIRECTORY).map_err(failed)?;
        let plain = Bind {
            source: PathBuf::new(),
            destination: PathBuf::new(),
            read_only: false,
            recursive: true,
            follows_host: false,
            id_map: None,
        };
        self.attach(&source, &plain, &self.staging.join("dir"), target)
            .map_err(failed)
    }

    fn bind_volume(&self, bundle: &Path, bind: &Bind, target: &Path) -> Result<(), RootfsError> {
        let path = bundle.join(&bind.source);
        let failed = |source| RootfsError::Source {
            path: path.clone(),
            source,
        };
        let source = open_beneath(bundle, &bind.source, OFlags::empty()).map_err(failed)?;
        let stat = rustix::fs::fstat(&source).map_err(|e| failed(e.into()))?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        let staging = match kind {
            FileType::Directory => {
                fs::create_dir(target).map_err(failed)?;
                self.staging.join("dir")
            }
            FileType::RegularFile => {
                File::create(target).map_err(failed)?;
                self.staging.join("file")
            }
            _ => {
                return Err(RootfsError::Kind {
                    path,
                    kind: kind_name(kind),
                });
            }
        };
        self.attach(&source, bind, &staging, target).map_err(failed)
    }

    /// Binds `source` to `target` by way of `staging`.
    fn attach(
        &self,
        source: &OwnedFd,
        bind: &Bind,
        staging: &Path,
        target: &Path,
    ) -> io::Result<()> {
        let tree = clone_tree(source, bind.recursive)?;
        if let Some(map) = &bind.id_map {
            id_map::map_owners(tree.as_fd(), map)?;
        }
        let from_itself = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
        rustix::mount::move_mount(&tree, "", CWD, staging, from_itself)?;
        let finished = finish(source, bind, staging)
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
                source: PathBuf::from(&mount.source),
                destination: PathBuf::new(),
                read_only: has("ro"),
                recursive: has("rbind"),
                follows_host: false,
                id_map: None,
            };
            let source =
                open_beneath(Path::new("/"), &bind.source, OFlags::DIRECTORY).map_err(failed)?;
            return self
                .attach(&source, &bind, &self.staging.join("dir"), target)
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

/// Gives the mount at `staging` its propagation and flags.
fn finish(source: &OwnedFd, bind: &Bind, staging: &Path) -> io::Result<()> {
    if !bind.follows_host {
        let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
        rustix::mount::mount_change(staging, private)?;
    }
    if bind.read_only {
        let flags = MountFlags::BIND | MountFlags::RDONLY | kept_flags(source)?;
        rustix::mount::mount_remount(staging, flags, c"")?;
    }
    Ok(())
}

/// A remount replaces all flags of a mount; these are to stay as the host has them.
fn kept_flags(source: &OwnedFd) -> io::Result<MountFlags> {
    let has = rustix::fs::fstatvfs(source.as_fd())?.f_flag;
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

fn kind_name(kind: FileType) -> &'static str {
    match kind {
        FileType::BlockDevice | FileType::CharacterDevice => "device",
        FileType::Socket => "socket",
        FileType::Fifo => "FIFO",
        _ => "special file",
    }
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
