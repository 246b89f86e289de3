//! What `state.json` says.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::ProcessRef;
use crate::hooks::Hook;

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
    /// The host cgroup that was made for it, until it is removed.
    pub(crate) cgroup: Option<CgroupRef>,
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
    pub(crate) annotations: BTreeMap<String, String>,
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

/// A cgroup named so that a later one with the same path is not taken for it.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub(crate) struct CgroupRef {
    /// Its directory.
    pub(crate) dir: PathBuf,
    /// Of the hierarchy.
    pub(crate) device: u64,
    /// The kernel gives no number twice.
    pub(crate) inode: u64,
    /// How many of the last names of the path are this program's alone.
    pub(crate) levels: usize,
}

impl Record {
    /// A record of a sandbox in which nothing is yet.
    pub(crate) fn new(id: &str, supervisor: ProcessRef) -> Self {
        Self {
            id: id.to_owned(),
            bundle: PathBuf::new(),
            created_ns: now_ns(),
            sandbox: None,
            supervisor,
            vmm: None,
            pid: None,
            cgroup: None,
            containers: Vec::new(),
            ended: None,
        }
    }

    /// What of it outlives a boot of the host.
    pub(super) fn without_processes(self) -> Self {
        Self {
            supervisor: ProcessRef::NONE,
            vmm: None,
            pid: None,
            cgroup: None,
            ..self
        }
    }
}

/// Nanoseconds since 1970, 0 when the clock is before that.
pub(crate) fn now_ns() -> u64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}
