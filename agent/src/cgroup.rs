//! The cgroup of a container (version 2): made, limited, killed, emptied, removed.

use std::collections::HashMap;
use std::fs::{self, File};
use std::future::Future;
use std::io::{self, Read};
use std::path::{Component, Path, PathBuf};

use tokio::io::Interest;

use crate::plan::{Limit, Limits, Present};
use crate::watch::watch;

/// What the kernel says of cgroups, read.
mod text;

/// Where the hierarchy is mounted.
pub(crate) const MOUNT: &str = "/sys/fs/cgroup";

/// Where the containers of a guest are.
pub(crate) const CONTAINERS: &str = "/sys/fs/cgroup/containers";

/// Containers may make cgroups of their own, so many below each other: systemd with a Kubernetes node in it needs eight.
const DEPTH_MAX: usize = 16;
/// And so many in all, of one container: the agent walks through them at its end. A node of 110 pods needs about 600.
const DESCENDANTS_MAX: usize = 4096;
/// And so many of all containers together: one without a cgroup namespace of its own can lift its own limit.
const DESCENDANTS_TOTAL_MAX: usize = 4 * DESCENDANTS_MAX;
/// Process ids are given up to this many: a reply has its limits too.
pub(crate) const PIDS_MAX: usize = 65_536;

/// `cgroup.events` has a few short lines.
const EVENTS_MAX: usize = 256;

/// What there is to know of a container, beside its huge pages.
const STATISTICS: [&str; 15] = [
    "cpu.stat",
    "cpu.max",
    "cpu.pressure",
    "memory.current",
    "memory.max",
    "memory.peak",
    "memory.swap.current",
    "memory.swap.max",
    "memory.stat",
    "memory.events",
    "memory.pressure",
    "pids.current",
    "pids.max",
    "io.stat",
    "io.pressure",
];
/// Of one such file, bytes. The longest, memory.stat, has about 1500; io.stat has a line of at most 200 per device.
const STATISTICS_MAX: u64 = 65_536;

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
        // In a cgroup namespace of its own the container cannot raise it: this cgroup's own files are its parent's.
        let most = path.join("cgroup.max.descendants");
        if let Err(error) = fs::write(most, DESCENDANTS_MAX.to_string()) {
            // What it is refused for is told; an empty cgroup is in nobody's way.
            let _ = fs::remove_dir(&path);
            return Err(error);
        }
        Ok(Self { path })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The cgroup in it that its process `pid` is in: itself, or one that the container has made and moved the process to.
    pub(crate) fn current(&self, pid: i32) -> PathBuf {
        let table = fs::read(format!("/proc/{pid}/cgroup")).unwrap_or_default();
        text::unified(&table)
            .map(|path| Path::new(MOUNT).join(path))
            .filter(|path| path.starts_with(&self.path) && path.is_dir())
            .unwrap_or_else(|| self.path.clone())
    }

    /// The cgroup `path` below it, whether it is there or not; none for a path that leads out of it. `..` is taken as text, since a cgroup
    /// has no links.
    pub(crate) fn below(&self, path: &str) -> Option<PathBuf> {
        let mut names = Vec::new();
        for component in Path::new(path).components() {
            match component {
                Component::Normal(name) => names.push(name),
                Component::ParentDir => drop(names.pop()?),
                Component::CurDir | Component::RootDir | Component::Prefix(_) => {}
            }
        }
        Some(
            names
                .iter()
                .fold(self.path.clone(), |path, name| path.join(name)),
        )
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

    /// What new limits depend on. A file that is not there limits nothing.
    pub(crate) fn present(&self) -> Present {
        let read = |file| fs::read_to_string(self.path.join(file)).unwrap_or_default();
        let number = |file| read(file).trim().parse().ok();
        let quota = read("cpu.max");
        Present {
            cpu_quota: quota.split_whitespace().next().map(str::to_owned),
            memory_max: number("memory.max"),
            memory_current: number("memory.current").unwrap_or(0),
        }
    }

    /// Stops every process in it, or lets them go on.
    pub(crate) fn freeze(&self, frozen: bool) -> io::Result<()> {
        fs::write(
            self.path.join("cgroup.freeze"),
            if frozen { "1" } else { "0" },
        )
    }

    /// Waits until every process in it stands still.
    pub(crate) fn frozen(&self) -> io::Result<impl Future<Output = io::Result<()>> + Send + use<>> {
        self.event(b"frozen 1")
    }

    /// Waits until no process is in it or below it.
    pub(crate) fn empty(&self) -> io::Result<impl Future<Output = io::Result<()>> + Send + use<>> {
        self.event(b"populated 0")
    }

    /// Waits until `cgroup.events` has this line. The kernel wakes whoever polls it for each change.
    fn event(
        &self,
        wanted: &'static [u8],
    ) -> io::Result<impl Future<Output = io::Result<()>> + Send + use<>> {
        let events = File::open(self.path.join("cgroup.events"))?;
        let events = watch(events.into(), Interest::PRIORITY)?;
        Ok(async move {
            let mut text = [0; EVENTS_MAX];
            loop {
                let len = rustix::io::pread(events.get_ref(), &mut text, 0)?;
                let mut lines = text[..len].split(|byte| *byte == b'\n');
                if lines.any(|line| line == wanted) {
                    return Ok(());
                }
                events.ready(Interest::PRIORITY).await?.clear_ready();
            }
        })
    }

    /// The text of its files of statistics and limits, those there are, by name.
    pub(crate) fn statistics(&self) -> io::Result<HashMap<String, String>> {
        let mut files = HashMap::new();
        for entry in fs::read_dir(&self.path)? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            let is_huge = name.starts_with("hugetlb.")
                && [".current", ".max", ".events"]
                    .iter()
                    .any(|end| name.ends_with(end));
            if !(is_huge || STATISTICS.contains(&name.as_str())) {
                continue;
            }
            let mut text = String::new();
            let read = File::open(self.path.join(&name))
                .and_then(|file| file.take(STATISTICS_MAX).read_to_string(&mut text));
            match read {
                Ok(_) => drop(files.insert(name, text)),
                // Pressure is not counted by every kernel that has the files.
                Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(files)
    }

    /// How many of its processes the kernel has killed for memory.
    pub(crate) fn oom_kills(&self) -> io::Result<u64> {
        let events = fs::read_to_string(self.path.join("memory.events"))?;
        Ok(text::oom_kills(&events))
    }

    /// Removes it, and what the container made below it. Fails while a process is in it.
    pub(crate) fn remove(&self) -> io::Result<()> {
        remove(&self.path, 0)
    }
}

/// Why a limit could not be set.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LimitError {
    #[error("cannot set linux.resources.{key}: the guest's kernel has no {file}")]
    Missing { key: String, file: String },
    #[error("cannot set linux.resources.{key} ({file} to {value:?})")]
    Write {
        key: String,
        file: String,
        value: String,
        #[source]
        source: io::Error,
    },
}

/// Writes limits, but for the device rules. Those before one that fails are set.
pub(crate) fn write(path: &Path, limits: &Limits) -> Result<(), LimitError> {
    limits.writes.iter().try_for_each(|limit| set(path, limit))
}

fn set(path: &Path, limit: &Limit) -> Result<(), LimitError> {
    let Limit {
        key,
        file,
        value,
        optional,
    } = limit.clone();
    let file_path = path.join(&file);
    // The kernel says that it may not be made, where there is none.
    if !file_path.exists() {
        return match optional {
            true => Ok(()),
            false => Err(LimitError::Missing { key, file }),
        };
    }
    fs::write(file_path, &value).map_err(|source| LimitError::Write {
        key,
        file,
        value,
        source,
    })
}

/// Makes the cgroup that all containers are in.
pub(crate) fn prepare(path: &Path) -> io::Result<()> {
    fs::create_dir_all(path)?;
    delegate(path)?;
    fs::write(
        path.join("cgroup.max.descendants"),
        DESCENDANTS_TOTAL_MAX.to_string(),
    )?;
    // A container and what it makes.
    fs::write(path.join("cgroup.max.depth"), (1 + DEPTH_MAX).to_string())
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_below_a_cgroup_does_not_lead_out_of_it() {
        let cgroup = Cgroup {
            path: "/c/web".into(),
        };
        for (path, below) in [
            ("/", Some("/c/web")),
            ("a/b", Some("/c/web/a/b")),
            ("/a/./x/../b/", Some("/c/web/a/b")),
            ("..", None),
            ("a/../../web", None),
        ] {
            assert_eq!(cgroup.below(path), below.map(PathBuf::from), "{path}");
        }
    }
}
