//! The sandbox's cgroup on the host (cgroup v2): it holds the VMM, and the supervisor while that stands for a container, because engines
//! find a container's cgroup by its process.
//!
//! It exists so that the VMM is counted and killed as one, and so that its death by the host's OOM killer is known.
//! Limits of containers are set by the guest's kernel, which knows the containers apart; none is set here.
//!
//! Path: the first container's `linux.cgroupsPath` (`slice:prefix:name` becomes `slice/prefix-name.scope`), by default
//! `/husk/<id>`. A path that was asked for and cannot be made is an error, as with runc; without one, a host that has no
//! writable cgroup v2 costs a warning.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};

/// Where cgroup v2 is mounted.
const CGROUP_ROOT: &str = "/sys/fs/cgroup";

/// Wanted in the sandbox's cgroup: what stats and OOM are read from.
const CONTROLLERS: [&str; 4] = ["+memory", "+cpu", "+io", "+pids"];

/// A cgroup this program made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Cgroup {
    dir: PathBuf,
}

/// Why there is no cgroup.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CgroupError {
    #[error("{CGROUP_ROOT} is not a cgroup v2 hierarchy")]
    NotVersion2,
    #[error("linux.cgroupsPath {} is not a path of names", .0.display())]
    InvalidPath(PathBuf),
    #[error("cannot make the cgroup {}", path.display())]
    Create {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

impl Cgroup {
    /// Makes the cgroup for the sandbox `id`, at `cgroups_path` when that is given.
    pub(crate) fn create(cgroups_path: Option<&Path>, id: &str) -> Result<Self, CgroupError> {
        let root = Path::new(CGROUP_ROOT);
        if !root.join("cgroup.controllers").exists() {
            return Err(CgroupError::NotVersion2);
        }
        let relative = relative_path(cgroups_path, id)?;
        let mut dir = root.to_owned();
        for name in &relative {
            enable_controllers(&dir);
            dir.push(name);
            match fs::create_dir(&dir) {
                Err(e) if e.kind() != io::ErrorKind::AlreadyExists => {
                    return Err(CgroupError::Create {
                        path: dir,
                        source: e,
                    });
                }
                _ => {}
            }
        }
        Ok(Self { dir })
    }

    /// The cgroup at `dir`, made by an earlier process.
    pub(crate) fn at(dir: PathBuf) -> Self {
        Self { dir }
    }

    /// The one this process is in.
    pub(crate) fn own() -> io::Result<Self> {
        let text = fs::read_to_string("/proc/self/cgroup")?;
        let path = text.lines().find_map(|line| line.strip_prefix("0::/"));
        let path = path.ok_or(io::ErrorKind::NotFound)?;
        Ok(Self::at(Path::new(CGROUP_ROOT).join(path)))
    }

    /// Its directory.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Moves a process in.
    pub(crate) fn enter(&self, pid: i32) -> io::Result<()> {
        fs::write(self.dir.join("cgroup.procs"), pid.to_string())
    }

    /// Moves a process in, which stands for a container. Returns where it was: it goes back there before the cgroup is removed.
    pub(crate) fn adopt(&self, pid: i32) -> Option<Self> {
        let adopted = Self::own().and_then(|home| self.enter(pid).map(|()| home));
        adopted
            .inspect_err(|e| tracing::warn!("{pid} is not in its container's cgroup: {e}"))
            .ok()
    }

    /// Moves the process back, and removes the cgroup, in which nothing else is any more.
    pub(crate) fn release(&self, pid: i32, home: Option<&Self>) {
        let left = home.map_or(Ok(()), |home| home.enter(pid));
        if let Err(e) = left.and_then(|()| self.remove()) {
            tracing::warn!("cannot remove the cgroup {}: {e}", self.dir.display());
        }
    }

    /// Whether the kernel killed a process in it for memory.
    pub(crate) fn had_oom_kill(&self) -> bool {
        fs::read_to_string(self.dir.join("memory.events"))
            .is_ok_and(|events| oom_kills(&events) > 0)
    }

    /// Kills all that is left in it.
    pub(crate) fn kill(&self) -> io::Result<()> {
        match fs::write(self.dir.join("cgroup.kill"), "1") {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            result => result,
        }
    }

    /// Removes it; one that is gone already is no error. It must be empty.
    pub(crate) fn remove(&self) -> io::Result<()> {
        match fs::remove_dir(&self.dir) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            result => result,
        }
    }
}

/// A cgroup that was asked for must be had; the default one is worth a warning only.
pub(crate) fn make(path: Option<&Path>, id: &str) -> Result<Option<Cgroup>, CgroupError> {
    match Cgroup::create(path, id) {
        Ok(cgroup) => Ok(Some(cgroup)),
        Err(e) if path.is_some() => Err(e),
        Err(e) => {
            let error = anyhow::Error::from(e);
            tracing::warn!("{id} has no cgroup of its own: {error:#}");
            Ok(None)
        }
    }
}

/// A parent that holds processes, or lacks a controller, cannot give it to its children: then they do without.
fn enable_controllers(dir: &Path) {
    for controller in CONTROLLERS {
        if let Err(e) = fs::write(dir.join("cgroup.subtree_control"), controller) {
            tracing::debug!("{} below {} is refused: {e}", controller, dir.display());
        }
    }
}

/// The path's names below the hierarchy's root (pure).
fn relative_path(cgroups_path: Option<&Path>, id: &str) -> Result<PathBuf, CgroupError> {
    let Some(path) = cgroups_path else {
        return Ok(Path::new("husk").join(id));
    };
    let invalid = || CgroupError::InvalidPath(path.to_owned());
    let text = path.to_str().ok_or_else(invalid)?;
    if !text.starts_with('/')
        && let [slice, prefix, name] = text.split(':').collect::<Vec<_>>()[..]
    {
        return scope_path(slice, prefix, name).ok_or_else(invalid);
    }
    let mut relative = PathBuf::new();
    for component in path.components() {
        match component {
            Component::RootDir | Component::CurDir => {}
            Component::Normal(name) => relative.push(name),
            Component::ParentDir | Component::Prefix(_) => return Err(invalid()),
        }
    }
    if relative.as_os_str().is_empty() {
        return Err(invalid());
    }
    Ok(relative)
}

/// systemd's form: slice `a-b.slice` lies in `a.slice`; the scope is `prefix-name.scope`.
fn scope_path(slice: &str, prefix: &str, name: &str) -> Option<PathBuf> {
    let slice = if slice.is_empty() {
        "system.slice"
    } else {
        slice
    };
    let stem = slice.strip_suffix(".slice")?;
    let is_name = |text: &str| !text.is_empty() && !text.contains('/');
    if !is_name(stem) || !is_name(name) || prefix.contains('/') {
        return None;
    }
    let mut path = PathBuf::new();
    if stem != "-" {
        let ends = stem.match_indices('-').map(|(at, _)| at);
        for end in ends.chain([stem.len()]) {
            path.push(format!("{}.slice", &stem[..end]));
        }
    }
    path.push(if prefix.is_empty() {
        name.to_owned()
    } else {
        format!("{prefix}-{name}.scope")
    });
    path.components()
        .all(|c| matches!(c, Component::Normal(name) if name != OsStr::new(".slice")))
        .then_some(path)
}

/// The `oom_kill` line of a `memory.events` file.
fn oom_kills(events: &str) -> u64 {
    events
        .lines()
        .find_map(|line| line.strip_prefix("oom_kill "))
        .and_then(|count| count.trim().parse().ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(cgroups_path: &str) -> Option<String> {
        relative_path(Some(Path::new(cgroups_path)), "web")
            .ok()
            .map(|path| path.to_str().unwrap().to_owned())
    }

    #[test]
    fn paths_stay_below_the_hierarchy() {
        assert_eq!(relative_path(None, "web").unwrap(), Path::new("husk/web"));
        assert_eq!(path("/default/web").as_deref(), Some("default/web"));
        assert_eq!(path("default/./web").as_deref(), Some("default/web"));
        assert_eq!(path("/default/../../web"), None);
        assert_eq!(path("/"), None);
    }

    #[test]
    fn systemds_form_becomes_a_path() {
        assert_eq!(
            path("system.slice:docker:4f").as_deref(),
            Some("system.slice/docker-4f.scope")
        );
        assert_eq!(
            path("kubepods-burstable-pod1.slice:cri-containerd:4f").as_deref(),
            Some(
                "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1.slice/\
                 cri-containerd-4f.scope"
            )
        );
        assert_eq!(
            path(":docker:4f").as_deref(),
            Some("system.slice/docker-4f.scope")
        );
        assert_eq!(
            path("-.slice:docker:4f").as_deref(),
            Some("docker-4f.scope")
        );
        for bad in [
            "../x.slice:docker:4f",
            "x.slice:a/b:4f",
            "x.slice:a:../4f",
            "x:a:4f",
        ] {
            assert_eq!(path(bad), None, "{bad}");
        }
    }

    #[test]
    fn oom_kills_are_counted() {
        assert_eq!(oom_kills("low 0\noom 4\noom_kill 2\noom_group_kill 0\n"), 2);
        assert_eq!(oom_kills(""), 0);
    }
}
