//! The cgroup of a container (version 2): made, limited, killed, emptied, removed.
//!
//! Limits are written by libcgroups, which also makes the device rules into their BPF program; it is called in the child only.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use libcgroups::common::{CgroupManager, ControllerOpt};
use libcgroups::v2::manager::{Manager, V2ManagerError};
use oci_spec::runtime::LinuxResources;

/// Where the hierarchy is mounted.
pub(crate) const MOUNT: &str = "/sys/fs/cgroup";

/// Containers may make cgroups of their own; deeper ones and more of them are not listed.
const DEPTH_MAX: usize = 16;
/// Process ids are given up to this many: a reply has its limits too.
pub(crate) const PIDS_MAX: usize = 65_536;

/// One container's cgroup.
#[derive(Debug)]
pub(crate) struct Cgroup {
    path: PathBuf,
}

impl Cgroup {
    /// Makes the cgroup `name` below `parent`.
    pub(crate) fn create(parent: &Path, name: &str) -> io::Result<Self> {
        let path = parent.join(name);
        match fs::create_dir(&path) {
            // An earlier container of the name that could not be removed; it is empty, or the kernel would say so at removal.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                remove(&path, 0).and_then(|()| fs::create_dir(&path))?
            }
            made => made?,
        }
        Ok(Self { path })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Sends SIGKILL to every process in it, at once and whatever they fork.
    pub(crate) fn kill(&self) -> io::Result<()> {
        fs::write(self.path.join("cgroup.kill"), "1")
    }

    /// The ids of all processes in it and below it.
    pub(crate) fn pids(&self) -> io::Result<Vec<i32>> {
        let mut pids = Vec::new();
        collect(&self.path, 0, &mut pids)?;
        Ok(pids)
    }

    /// How many of its processes the kernel has killed for memory.
    pub(crate) fn oom_kills(&self) -> io::Result<u64> {
        let events = fs::read_to_string(self.path.join("memory.events"))?;
        let kills = events
            .lines()
            .find_map(|line| line.strip_prefix("oom_kill ")?.parse().ok());
        Ok(kills.unwrap_or(0))
    }

    /// Removes it, and what the container made below it. Fails while a process is in it.
    pub(crate) fn remove(&self) -> io::Result<()> {
        remove(&self.path, 0)
    }
}

/// Writes the limits of a specification.
pub(crate) fn limit(path: &Path, limits: &LinuxResources) -> Result<(), V2ManagerError> {
    let name = path.strip_prefix(MOUNT).unwrap_or(path);
    let manager = Manager::new(PathBuf::from(MOUNT), Path::new("/").join(name))?;
    let options = ControllerOpt {
        resources: limits,
        disable_oom_killer: false,
        oom_score_adj: None,
        freezer_state: None,
    };
    manager.apply(&options)
}

/// Enables every controller for the children of `path`, one by one: those that are not there are not missed until a limit asks for them.
pub(crate) fn delegate(path: &Path) -> io::Result<()> {
    for controller in fs::read_to_string(path.join("cgroup.controllers"))?.split_whitespace() {
        fs::write(
            path.join("cgroup.subtree_control"),
            format!("+{controller}"),
        )?;
    }
    Ok(())
}

fn below(path: &Path) -> io::Result<impl Iterator<Item = PathBuf>> {
    let entries = fs::read_dir(path)?.filter_map(Result::ok);
    Ok(entries
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path()))
}

fn collect(path: &Path, depth: usize, pids: &mut Vec<i32>) -> io::Result<()> {
    let own = fs::read_to_string(path.join("cgroup.procs"))?;
    pids.extend(
        own.lines()
            .filter_map(|line| line.parse::<i32>().ok())
            .take(PIDS_MAX - pids.len()),
    );
    if depth < DEPTH_MAX {
        for child in below(path)? {
            // A cgroup may go away while it is looked at.
            let _ = collect(&child, depth + 1, pids);
        }
    }
    Ok(())
}

fn remove(path: &Path, depth: usize) -> io::Result<()> {
    match fs::remove_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::ResourceBusy && depth < DEPTH_MAX => {
            for child in below(path)? {
                remove(&child, depth + 1)?;
            }
            fs::remove_dir(path)
        }
        other => other,
    }
}
