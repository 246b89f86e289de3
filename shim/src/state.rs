//! The state directory of a sandbox: `<root>/<id>/`, mode 0700.
//!
//! ```text
//!   state.json      the record below, replaced by rename
//!   task.sock       the Task API
//!   shared/         the directory the guest sees; a tmpfs in the supervisor's own mount namespace
//!   supervisor.log  the supervisor's standard error
//! ```
//!
//! The directory's creation is what claims an id. The record says enough for a later process to end and remove
//! everything when the supervisor itself is dead. Ways to fail: the id is taken, not valid or not there, or the file
//! system refuses.

use std::ffi::OsStr;
use std::fmt;
use std::fs::{self, DirBuilder, File};
use std::io::{self, Write as _};
use std::os::fd::RawFd;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, PidfdFlags};
use serde::{Deserialize, Serialize};

use crate::hooks::Hook;

/// The longest id: it is a directory's name.
const ID_MAX_BYTES: usize = 255;

/// The Task API's name in the directory.
const SOCKET: &str = "task.sock";

/// The state directory of one sandbox.
#[derive(Clone, Debug)]
pub(crate) struct StateDir {
    path: PathBuf,
}

/// Why a state directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StateError {
    /// See [`check_id`].
    #[error("invalid id {0:?}: letters, digits and _ + , - . only, 1 to {ID_MAX_BYTES} of them")]
    InvalidId(String),
    /// Another sandbox has the id, or an ended one was not deleted yet.
    #[error("a container with id {0:?} exists already")]
    Exists(String),
    /// Nobody has the id.
    #[error("container {0:?} does not exist")]
    NotFound(String),
    /// `state.json` is not what this program writes.
    #[error("{} is damaged", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        #[source]
        source: serde_json::Error,
    },
    /// The file system refused.
    #[error("cannot {action} {}", path.display())]
    Io {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// What `state.json` holds.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub(crate) struct Record {
    /// The sandbox's id; a standalone container has the same.
    pub(crate) id: String,
    /// The bundle of the sandbox's first container.
    pub(crate) bundle: PathBuf,
    /// When the sandbox was made, nanoseconds since 1970.
    pub(crate) created_ns: u64,
    /// The sandbox that the container is a member of, if not one of its own: that sandbox's record says what the container does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) sandbox: Option<String>,
    /// The process that owns all of it: the supervisor, or what stands for a member of another sandbox.
    pub(crate) supervisor: ProcessRef,
    /// The VMM, once started.
    pub(crate) vmm: Option<ProcessRef>,
    /// What is reported as the pid of the containers, once there is a VMM. Members of a sandbox have one of their own.
    #[serde(default)]
    pub(crate) pid: Option<i32>,
    /// The host cgroup's directory that holds the VMM.
    pub(crate) cgroup: Option<PathBuf>,
    /// By id.
    pub(crate) containers: Vec<ContainerRecord>,
    /// Why the VM ended, if it did so by itself.
    pub(crate) ended: Option<String>,
}

/// One container of the sandbox.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub(crate) struct ContainerRecord {
    /// The container's id.
    pub(crate) id: String,
    /// Its bundle, absolute.
    pub(crate) bundle: PathBuf,
    /// Its root file system on the host, absolute.
    #[serde(default)]
    pub(crate) rootfs: PathBuf,
    /// Where it is in its life.
    pub(crate) status: Status,
    /// Nanoseconds since 1970.
    pub(crate) created_ns: u64,
    /// Exit code, or 128 + signal, once stopped.
    pub(crate) exit_status: Option<u32>,
    /// The OCI configuration's annotations.
    #[serde(default)]
    pub(crate) annotations: std::collections::BTreeMap<String, String>,
    /// Hooks that are owed when the container is removed.
    #[serde(default)]
    pub(crate) poststop: Vec<Hook>,
    /// The process that stands for it and has a record of its own, if it is a member of another's sandbox.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) stand_in: Option<i32>,
}

/// A container's or a process's life, in the words of the OCI runtime specification.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Status {
    /// Being made.
    Creating,
    /// Made; its program has not been executed.
    Created,
    /// Its program was executed.
    Running,
    /// None of its processes runs until it is resumed.
    Paused,
    /// Its init process has exited.
    Stopped,
}

impl fmt::Display for Status {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Creating => "creating",
            Self::Created => "created",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopped => "stopped",
        })
    }
}

/// A process named so that a later one with the same pid is not taken for it.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub(crate) struct ProcessRef {
    /// Process id on the host.
    pub(crate) pid: i32,
    /// Clock ticks after boot, field 22 of `/proc/PID/stat`.
    pub(crate) start_time: u64,
}

impl StateDir {
    /// The directory of `id` below `root`, whether it exists or not.
    pub(crate) fn at(root: &Path, id: &str) -> Result<Self, StateError> {
        check_id(id)?;
        Ok(Self {
            path: root.join(id),
        })
    }

    /// Claims `id`: makes its directory and `shared/` in it. `root` is made when missing.
    pub(crate) fn create(root: &Path, id: &str) -> Result<Self, StateError> {
        let dir = Self::at(root, id)?;
        let private = |recursive| {
            let mut builder = DirBuilder::new();
            builder.mode(0o700).recursive(recursive);
            builder
        };
        private(true)
            .create(root)
            .map_err(|e| io_error("create", root, e))?;
        private(false).create(&dir.path).map_err(|e| {
            if e.kind() == io::ErrorKind::AlreadyExists {
                StateError::Exists(id.to_owned())
            } else {
                io_error("create", &dir.path, e)
            }
        })?;
        let shared = dir.shared();
        private(false)
            .create(&shared)
            .map_err(|e| io_error("create", &shared, e))?;
        Ok(dir)
    }

    /// The directory of `id`, which must exist.
    pub(crate) fn open(root: &Path, id: &str) -> Result<Self, StateError> {
        let dir = Self::at(root, id)?;
        match fs::symlink_metadata(&dir.path) {
            Ok(_) => Ok(dir),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Err(StateError::NotFound(id.into())),
            Err(e) => Err(io_error("read", &dir.path, e)),
        }
    }

    /// The ids of all sandboxes below `root`, sorted; none when `root` is missing.
    pub(crate) fn list(root: &Path) -> Result<Vec<String>, StateError> {
        let entries = match fs::read_dir(root) {
            Ok(entries) => entries,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(io_error("list", root, e)),
        };
        let mut ids = Vec::new();
        for entry in entries {
            let entry = entry.map_err(|e| io_error("list", root, e))?;
            let is_dir = entry
                .file_type()
                .map_err(|e| io_error("list", root, e))?
                .is_dir();
            if let Some(id) = entry.file_name().to_str()
                && is_dir
                && check_id(id).is_ok()
            {
                ids.push(id.to_owned());
            }
        }
        ids.sort();
        Ok(ids)
    }

    /// The directory itself.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The directory the guest sees.
    pub(crate) fn shared(&self) -> PathBuf {
        self.path.join("shared")
    }

    /// The socket of the Task API, by way of the open directory `dir`: a socket's address holds 108 bytes, a path below a
    /// root more.
    pub(crate) fn socket_beneath(dir: RawFd) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{dir}/{SOCKET}"))
    }

    /// What the supervisor says when no log file was named, and its last words.
    pub(crate) fn log(&self) -> PathBuf {
        self.path.join("supervisor.log")
    }

    /// Replaces the record.
    pub(crate) fn write(&self, record: &Record) -> Result<(), StateError> {
        let path = self.record_path();
        let text = serde_json::to_vec(record).map_err(|source| StateError::Damaged {
            path: path.clone(),
            source,
        })?;
        let new = self.path.join("state.json.new");
        File::create(&new)
            .and_then(|mut file| file.write_all(&text))
            .and_then(|()| fs::rename(&new, &path))
            .map_err(|e| io_error("write", &path, e))
    }

    /// The record, or None when the supervisor did not get so far as to write one.
    pub(crate) fn read(&self) -> Result<Option<Record>, StateError> {
        let path = self.record_path();
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(io_error("read", &path, e)),
        };
        serde_json::from_slice(&text)
            .map(Some)
            .map_err(|source| StateError::Damaged { path, source })
    }

    /// Removes the socket, whose server ends; one that is gone already is no error.
    pub(crate) fn remove_socket(&self) -> Result<(), StateError> {
        let path = self.path.join(SOCKET);
        match fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(io_error("remove", &path, e)),
            _ => Ok(()),
        }
    }

    /// Removes the directory with all that is in it; one that is gone already is no error.
    pub(crate) fn remove(&self) -> Result<(), StateError> {
        match fs::remove_dir_all(&self.path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(io_error("remove", &self.path, e)),
            _ => Ok(()),
        }
    }

    fn record_path(&self) -> PathBuf {
        self.path.join("state.json")
    }
}

impl ProcessRef {
    /// Names the process that has `pid` now; None when there is none.
    pub(crate) fn of(pid: i32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        Some(Self {
            pid,
            start_time: start_time(&stat)?,
        })
    }

    /// Names this process.
    pub(crate) fn this() -> Option<Self> {
        Self::of(i32::try_from(std::process::id()).ok()?)
    }

    /// A pidfd of the process while it is alive; None once it is gone, whoever has its pid now.
    pub(crate) fn open(self) -> Option<std::os::fd::OwnedFd> {
        let pid = Pid::from_raw(self.pid)?;
        let pidfd = rustix::process::pidfd_open(pid, PidfdFlags::empty()).ok()?;
        // Compared after the open: the pidfd then cannot be another's.
        let same = Self::of(self.pid) == Some(self);
        // Readable when it has exited, also while its parent has not waited for it.
        let mut exited = [PollFd::new(&pidfd, PollFlags::IN)];
        let dead = rustix::event::poll(&mut exited, Some(&Timespec::default())) == Ok(1);
        (same && !dead).then_some(pidfd)
    }
}

/// Letters, digits and `_ + , - .`, as runc has it; `.` and `..` are not names.
pub(crate) fn check_id(id: &str) -> Result<(), StateError> {
    let fits = (1..=ID_MAX_BYTES).contains(&id.len());
    let plain = id
        .bytes()
        .all(|b| b.is_ascii_alphanumeric() || b"_+,-.".contains(&b));
    if fits && plain && id != "." && id != ".." {
        Ok(())
    } else {
        Err(StateError::InvalidId(id.to_owned()))
    }
}

/// Nanoseconds since 1970, 0 when the clock is before that.
pub(crate) fn now_ns() -> u64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

/// Field 22 of a `/proc/PID/stat` line; the name before it may hold spaces and parentheses.
fn start_time(stat: &str) -> Option<u64> {
    let (_, after_name) = stat.rsplit_once(')')?;
    // The first field after the name is number 3.
    after_name
        .split_ascii_whitespace()
        .nth(22 - 3)?
        .parse()
        .ok()
}

fn io_error(action: &'static str, path: impl AsRef<OsStr>, source: io::Error) -> StateError {
    StateError::Io {
        action,
        path: PathBuf::from(path.as_ref()),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> Record {
        Record {
            id: "web".into(),
            bundle: "/bundles/web".into(),
            sandbox: None,
            created_ns: 1,
            supervisor: ProcessRef {
                pid: 7,
                start_time: 8,
            },
            vmm: None,
            pid: None,
            cgroup: None,
            containers: Vec::new(),
            ended: None,
        }
    }

    #[test]
    fn ids_are_runcs() {
        for good in ["a", "A_b+c,d-e.f", "...", &"x".repeat(ID_MAX_BYTES)] {
            assert!(check_id(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            ".",
            "..",
            "a/b",
            "a b",
            "ü",
            &"x".repeat(ID_MAX_BYTES + 1),
        ] {
            assert!(check_id(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn second_claim_of_an_id_names_it() {
        let root = tempfile::tempdir().unwrap();
        StateDir::create(root.path(), "web").unwrap();
        let error = StateDir::create(root.path(), "web").unwrap_err();
        assert_eq!(
            error.to_string(),
            "a container with id \"web\" exists already"
        );
    }

    #[test]
    fn record_survives_writing_and_reading() {
        let root = tempfile::tempdir().unwrap();
        let dir = StateDir::create(root.path(), "web").unwrap();
        assert_eq!(dir.read().unwrap(), None);
        dir.write(&record()).unwrap();
        assert_eq!(dir.read().unwrap(), Some(record()));
    }

    #[test]
    fn removal_is_repeatable() {
        let root = tempfile::tempdir().unwrap();
        let dir = StateDir::create(root.path(), "web").unwrap();
        dir.remove().unwrap();
        dir.remove().unwrap();
        assert!(matches!(
            StateDir::open(root.path(), "web"),
            Err(StateError::NotFound(_))
        ));
    }

    #[test]
    fn ids_are_listed_sorted() {
        let root = tempfile::tempdir().unwrap();
        assert!(
            StateDir::list(&root.path().join("none"))
                .unwrap()
                .is_empty()
        );
        StateDir::create(root.path(), "b").unwrap();
        StateDir::create(root.path(), "a").unwrap();
        fs::write(root.path().join("file"), "").unwrap();
        assert_eq!(StateDir::list(root.path()).unwrap(), ["a", "b"]);
    }

    #[test]
    fn start_time_is_found_behind_an_odd_name() {
        let stat = "12 (a b) c) S 1 1 1 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 777 5 6";
        assert_eq!(start_time(stat), Some(777));
    }

    #[test]
    fn a_process_is_not_taken_for_a_later_one_with_its_pid() {
        let me = ProcessRef::of(i32::try_from(std::process::id()).unwrap()).unwrap();
        assert!(me.open().is_some());
        let earlier = ProcessRef {
            start_time: me.start_time.wrapping_sub(1),
            ..me
        };
        assert!(earlier.open().is_none());
    }

    #[test]
    fn a_process_nobody_has_waited_for_is_dead() {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let pid = child.id().try_into().unwrap();
        let process = ProcessRef::of(pid).unwrap();
        let pid = Pid::from_raw(pid).unwrap();
        let pidfd = rustix::process::pidfd_open(pid, PidfdFlags::empty()).unwrap();
        let mut exited = [PollFd::new(&pidfd, PollFlags::IN)];
        rustix::event::poll(&mut exited, None).unwrap();
        assert!(process.open().is_none());
        child.wait().unwrap();
    }
}
