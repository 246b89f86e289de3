//! The sandbox's cgroup on the host (cgroup v2): it holds the VMM, and the supervisor while that stands for a container, because engines
//! find a container's cgroup by its process.
//!
//! It exists so that the VMM is counted and killed as one, and so that its death by the host's OOM killer is known.
//! Limits of containers are set by the guest's kernel, which knows the containers apart. At the default path the VM as a whole may have the
//! memory that its guest can grow to, and an overhead; at a path of the caller's, limits are the caller's.
//!
//! Path: the first container's `linux.cgroupsPath` (`slice:prefix:name` becomes `slice/prefix-name.scope`), by default
//! `/husk/<root>/<id>`, where `<root>` is a number made of the path of the root: two roots may have the same id. A path that was asked for
//! and cannot be made is an error, as with runc; without one, a host that has no writable cgroup v2 costs a warning.
//!
//! Who is in a cgroup of ours is killed with it, so nobody else may be: the last directory of the path must be new, or one that an
//! earlier container of the same name left behind, marked by an attribute, and empty. Later processes know it by its inode.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{AtFlags, CWD, Mode, OFlags, XattrFlags};
use rustix::io::Errno;

use crate::state::{CgroupRef, StateDir};

/// Where cgroup v2 is mounted.
const CGROUP_ROOT: &str = "/sys/fs/cgroup";

/// Wanted in the sandbox's cgroup: what stats and OOM are read from.
const CONTROLLERS: [&str; 4] = ["+memory", "+cpu", "+io", "+pids"];

/// Says whose a cgroup is.
const MARK: &str = "trusted.husk";

/// More than a mark has bytes: a number and an id.
const MARK_MAX_BYTES: usize = 512;

/// How many names of a default path are ours alone.
const DEFAULT_LEVELS: usize = 3;

/// Beside the guest's memory a VM may use this much of the host's. At rest VMM and supervisor have 8 MiB, and the kernel 1.3 for them; what is
/// above that is for the sockets, descriptors and inodes that a busy guest costs. Pages of files count too, and can be taken back.
const OVERHEAD_MIB: u64 = 128;

/// One part in this many of the guest's memory is page tables for it: the host's and the nested ones, 8 of 4096 bytes each.
const PAGE_TABLES_PART: u64 = 256;

/// How often a path is made anew because its upper directories, empty for a moment, were removed with another container.
const ATTEMPTS_MAX: u32 = 16;

/// A cgroup that this program made; clones are the same.
#[derive(Clone, Debug)]
pub(crate) struct Cgroup {
    named: CgroupRef,
    fd: Arc<OwnedFd>,
}

/// Why there is no cgroup.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CgroupError {
    #[error("{CGROUP_ROOT} is not a cgroup v2 hierarchy")]
    NotVersion2,
    #[error("linux.cgroupsPath {} is not a path of names", .0.display())]
    InvalidPath(PathBuf),
    #[error("the cgroup {} exists already and is not this container's", .0.display())]
    Foreign(PathBuf),
    #[error("the cgroup {} has processes or cgroups in it", .0.display())]
    InUse(PathBuf),
    #[error("cannot make the cgroup {}", path.display())]
    Create {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

impl Cgroup {
    /// Makes the cgroup `relative` below `hierarchy`, whose last `levels` names are ours; `mark` says for whom.
    fn create(
        hierarchy: &Path,
        relative: &Path,
        levels: usize,
        mark: &[u8],
    ) -> Result<Self, CgroupError> {
        let dir = hierarchy.join(relative);
        let failed = |e: Errno| CgroupError::Create {
            path: dir.clone(),
            source: e.into(),
        };
        let mut attempts = 0;
        let is_new = loop {
            attempts += 1;
            match make_directories(hierarchy, relative) {
                Ok(()) => break true,
                Err(Errno::EXIST) => break false,
                Err(Errno::NOENT) if attempts < ATTEMPTS_MAX => {}
                Err(e) => return Err(failed(e)),
            }
        };
        let fd = open(&dir).map_err(failed)?;
        if is_new {
            let marked = rustix::fs::fsetxattr(&fd, MARK, mark, XattrFlags::empty());
            if let Err(e) = marked {
                tracing::debug!("{} is not marked: {e}", dir.display());
            }
        } else if mark_of(&fd).as_deref() != Some(mark) {
            return Err(CgroupError::Foreign(dir));
        } else if !is_empty(&fd).map_err(failed)? {
            return Err(CgroupError::InUse(dir));
        }
        Self::of(fd, dir.clone(), levels).map_err(failed)
    }

    /// The one that an earlier process has made, unless it is gone, whatever has its path now.
    pub(crate) fn find(named: &CgroupRef) -> Option<Self> {
        let fd = open(&named.dir).ok()?;
        let stat = rustix::fs::fstat(&fd).ok()?;
        let same = (stat.st_dev, stat.st_ino) == (named.device, named.inode);
        same.then(|| Self {
            named: named.clone(),
            fd: Arc::new(fd),
        })
    }

    /// The one at the default path of a sandbox or container, if it was made for that: whoever made it may have died before it could write it
    /// down.
    pub(crate) fn find_own(state: &StateDir) -> Option<Self> {
        let own = own_path(state.root(), state.id());
        let dir = Path::new(CGROUP_ROOT).join(&own);
        let fd = open(&dir).ok()?;
        let is_marked = mark_of(&fd)? == own.as_os_str().as_bytes();
        is_marked
            .then(|| Self::of(fd, dir, DEFAULT_LEVELS).ok())
            .flatten()
    }

    fn of(fd: OwnedFd, dir: PathBuf, levels: usize) -> Result<Self, Errno> {
        let stat = rustix::fs::fstat(&fd)?;
        Ok(Self {
            named: CgroupRef {
                dir,
                device: stat.st_dev,
                inode: stat.st_ino,
                levels,
            },
            fd: Arc::new(fd),
        })
    }

    /// For a later process to find it by.
    pub(crate) fn named(&self) -> &CgroupRef {
        &self.named
    }

    /// Moves a process in.
    pub(crate) fn enter(&self, pid: i32) -> io::Result<()> {
        self.write("cgroup.procs", &pid.to_string())
    }

    /// Moves a process in, which stands for a container. Returns where it was: it goes back there before the cgroup is removed.
    pub(crate) fn adopt(&self, pid: i32) -> Option<Home> {
        let adopted = Home::of_this().and_then(|home| self.enter(pid).map(|()| home));
        adopted
            .inspect_err(|e| tracing::warn!("{pid} is not in its container's cgroup: {e}"))
            .ok()
    }

    /// Moves the process back, and removes the cgroup, in which nothing else is any more. Returns whether it is gone.
    pub(crate) fn release(&self, pid: i32, home: Option<&Home>) -> bool {
        let left = home.map_or(Ok(()), |home| home.enter(pid));
        let removed = left.and_then(|()| self.remove());
        if let Err(e) = &removed {
            tracing::warn!("cannot remove the cgroup {}: {e}", self.named.dir.display());
        }
        removed.is_ok()
    }

    /// Lets its processes have no more memory than a VM needs whose guest can have `guest_mib` at most.
    pub(crate) fn limit_memory(&self, guest_mib: u64) {
        if let Err(e) = self.write("memory.max", &memory_max(guest_mib).to_string()) {
            tracing::warn!(
                "the memory of {} has no limit: {e}",
                self.named.dir.display()
            );
        }
    }

    /// Whether the kernel killed a process in it for memory.
    pub(crate) fn had_oom_kill(&self) -> bool {
        read(&self.fd, "memory.events").is_ok_and(|events| count_of(&events, "oom_kill") > 0)
    }

    /// Kills all that is in it, and waits at most for `patience` until that has ended.
    pub(crate) fn kill(&self, patience: Duration) -> io::Result<()> {
        match self.write("cgroup.kill", "1") {
            // Linux before 5.14.
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            killed => killed?,
        }
        let deadline = Instant::now() + patience;
        let mut events = File::from(openat(&self.fd, "cgroup.events", OFlags::RDONLY)?);
        loop {
            let mut text = String::new();
            events.rewind()?;
            events.read_to_string(&mut text)?;
            if count_of(&text, "populated") == 0 {
                return Ok(());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(io::Error::other("what was killed does not end"));
            }
            let left = Timespec::try_from(left).map_err(io::Error::other)?;
            // The kernel says so when the file has changed since it was read.
            let mut changed = [PollFd::new(&events, PollFlags::PRI)];
            rustix::io::retry_on_intr(|| rustix::event::poll(&mut changed, Some(&left)))?;
        }
    }

    /// Removes it, and of a default path what is empty above it; one that is gone already is no error. It must be empty.
    pub(crate) fn remove(&self) -> io::Result<()> {
        let CgroupRef { dir, levels, .. } = &self.named;
        if Self::find(&self.named).is_none() {
            return Ok(());
        }
        match fs::remove_dir(dir) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        for above in dir.ancestors().take(*levels).skip(1) {
            // In use by other containers.
            if fs::remove_dir(above).is_err() {
                break;
            }
        }
        Ok(())
    }

    fn write(&self, file: &str, text: &str) -> io::Result<()> {
        File::from(openat(&self.fd, file, OFlags::WRONLY)?).write_all(text.as_bytes())
    }
}

/// The cgroup that a process was in before.
#[derive(Clone, Debug)]
pub(crate) struct Home(PathBuf);

impl Home {
    fn of_this() -> io::Result<Self> {
        let text = fs::read("/proc/self/cgroup")?;
        let path = unified(&text).ok_or(io::ErrorKind::NotFound)?;
        Ok(Self(Path::new(CGROUP_ROOT).join(path)))
    }

    fn enter(&self, pid: i32) -> io::Result<()> {
        fs::write(self.0.join("cgroup.procs"), pid.to_string())
    }
}

/// The cgroup of the sandbox or container whose state is in `state`. One that was asked for must be had; the default one is worth a warning
/// only.
pub(crate) fn make(path: Option<&Path>, state: &StateDir) -> Result<Option<Cgroup>, CgroupError> {
    match make_in(Path::new(CGROUP_ROOT), path, state) {
        Ok(cgroup) => Ok(Some(cgroup)),
        Err(e) if path.is_some() => Err(e),
        Err(e) => {
            let error = anyhow::Error::from(e);
            tracing::warn!("{} has no cgroup of its own: {error:#}", state.id());
            Ok(None)
        }
    }
}

fn make_in(hierarchy: &Path, path: Option<&Path>, state: &StateDir) -> Result<Cgroup, CgroupError> {
    if !hierarchy.join("cgroup.controllers").exists() {
        return Err(CgroupError::NotVersion2);
    }
    let own = own_path(state.root(), state.id());
    let mark = own.as_os_str().as_bytes();
    match path {
        Some(path) => Cgroup::create(hierarchy, &relative_path(path)?, 1, mark),
        None => Cgroup::create(hierarchy, &own, DEFAULT_LEVELS, mark),
    }
}

/// In bytes (pure).
fn memory_max(guest_mib: u64) -> u64 {
    (guest_mib + guest_mib / PAGE_TABLES_PART + OVERHEAD_MIB) * 1024 * 1024
}

/// Makes the directories of `relative`, of which the last one must be new.
fn make_directories(hierarchy: &Path, relative: &Path) -> Result<(), Errno> {
    let mut dir = hierarchy.to_owned();
    let mut names = relative.iter().peekable();
    while let Some(name) = names.next() {
        enable_controllers(&dir);
        dir.push(name);
        match rustix::fs::mkdirat(CWD, &dir, Mode::from_raw_mode(0o755)) {
            Err(Errno::EXIST) if names.peek().is_some() => {}
            made => made?,
        }
    }
    Ok(())
}

fn open(dir: &Path) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::open(dir, flags, Mode::empty())
}

fn openat(dir: &OwnedFd, file: &str, access: OFlags) -> Result<OwnedFd, Errno> {
    rustix::fs::openat(dir, file, access | OFlags::CLOEXEC, Mode::empty())
}

fn read(dir: &OwnedFd, file: &str) -> io::Result<String> {
    let mut text = String::new();
    File::from(openat(dir, file, OFlags::RDONLY)?).read_to_string(&mut text)?;
    Ok(text)
}

/// The mark of a cgroup that has one.
fn mark_of(dir: &OwnedFd) -> Option<Vec<u8>> {
    let mut mark = vec![0; MARK_MAX_BYTES];
    let length = rustix::fs::fgetxattr(dir, MARK, &mut mark[..]).ok()?;
    mark.truncate(length);
    Some(mark)
}

/// Whether there is no process and no further cgroup in it.
fn is_empty(dir: &OwnedFd) -> Result<bool, Errno> {
    let populated = read(dir, "cgroup.events").map(|events| count_of(&events, "populated"));
    let stat = rustix::fs::statat(dir, "", AtFlags::EMPTY_PATH)?;
    // A directory has a link for itself, one for its name, and one for each directory in it.
    Ok(populated.is_ok_and(|count| count == 0) && stat.st_nlink <= 2)
}

/// A sandbox's own path: no other root has it (pure).
fn own_path(root: &Path, id: &str) -> PathBuf {
    // FNV-1a: an even spread is all that is asked of it.
    let number = root
        .as_os_str()
        .as_bytes()
        .iter()
        .fold(0xcbf2_9ce4_8422_2325_u64, |number, byte| {
            (number ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
        });
    Path::new("husk").join(format!("{number:016x}")).join(id)
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
fn relative_path(path: &Path) -> Result<PathBuf, CgroupError> {
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

/// The number behind a name in a file of such lines (pure).
fn count_of(lines: &str, name: &str) -> u64 {
    lines
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))
        .and_then(|count| count.trim().parse().ok())
        .unwrap_or(0)
}

/// The path of version 2's hierarchy in a `/proc/PID/cgroup` (pure). Names of cgroups need not be text.
fn unified(table: &[u8]) -> Option<&Path> {
    let mut lines = table.split(|byte| *byte == b'\n');
    let path = lines.find_map(|line| line.strip_prefix(b"0::/"))?;
    Some(Path::new(OsStr::from_bytes(path)))
}

/// A counter is what its own line says, wherever in the file that is; a path is found whatever it has.
#[cfg(fuzzing)]
pub(crate) fn read_files(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let before: String = text.lines().map(|line| format!("x{line}\n")).collect();
    let later = format!("{before}oom_kill {}\n", bytes.len());
    assert_eq!(
        count_of(&later, "oom_kill"),
        u64::try_from(bytes.len()).unwrap_or_default()
    );
    let name: Vec<u8> = bytes
        .iter()
        .copied()
        .filter(|byte| *byte != b'\n')
        .collect();
    let table = [b"1:name=systemd:/a\n0::/", &name[..], b"\n"].concat();
    assert_eq!(unified(&table), Some(Path::new(OsStr::from_bytes(&name))));
}

#[cfg(test)]
mod tests;
