//! What is known of a container without asking anybody: its supervisor's record on disk, and whether the supervisor lives. In the
//! words and formats of an OCI runtime.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::anyhow;
use nix::unistd::User;
use serde::Serialize;

use super::calendar::Time;
use crate::config::Options;
use crate::spec::VERSION;
use crate::state::{Record, StateDir, StateError, Status};

/// The state of a container as the OCI runtime specification has it, and the fields that runc adds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct State {
    #[serde(rename = "ociVersion")]
    oci_version: &'static str,
    pub(super) id: String,
    /// 0 when stopped.
    pub(super) pid: i32,
    pub(super) status: Status,
    pub(super) bundle: PathBuf,
    pub(super) rootfs: PathBuf,
    /// RFC 3339.
    pub(super) created: String,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    annotations: BTreeMap<String, String>,
    /// The user who made it, in a list.
    pub(super) owner: String,
}

/// What runc says of a container that would have to live, and its users look for.
pub(super) const NOT_RUNNING: &str = "container not running";

impl State {
    /// Refuses, in `words`, unless the container has one of these states.
    pub(super) fn expect_one_of(&self, states: &[Status], words: &str) -> anyhow::Result<()> {
        if states.contains(&self.status) {
            return Ok(());
        }
        Err(anyhow!("{words}: {} is {}", self.id, self.status))
    }
}

/// The state of container `id`.
pub(super) fn state(options: &Options, id: &str) -> Result<State, StateError> {
    let record = StateDir::open(&options.root, id)?.read()?;
    let state = match record {
        Some(record) => {
            let status = status_in_sandbox(options, &record)?;
            of(record, id, status)
        }
        None => None,
    };
    state.ok_or_else(|| StateError::NotFound(id.to_owned()))
}

/// What the supervisor of its sandbox says that a member is doing; None when it is none, or not made yet. Without that supervisor it has
/// stopped.
fn status_in_sandbox(options: &Options, record: &Record) -> Result<Option<Status>, StateError> {
    let Some(sandbox) = &record.sandbox else {
        return Ok(None);
    };
    let sandbox = match StateDir::open(&options.root, sandbox) {
        Ok(state) => state.read()?,
        Err(StateError::NotFound(_)) => None,
        Err(error) => return Err(error),
    };
    let Some(sandbox) = sandbox.filter(|sandbox| sandbox.supervisor.open().is_some()) else {
        return Ok(Some(Status::Stopped));
    };
    let mut containers = sandbox.containers.into_iter();
    let found = containers.find(|container| container.id == record.id);
    Ok(match found {
        Some(container) => Some(container.status),
        // It has been removed already.
        None if record
            .containers
            .iter()
            .all(|c| c.status != Status::Creating) =>
        {
            Some(Status::Stopped)
        }
        None => None,
    })
}

/// The processes of this host that container `id` is made of.
pub(super) fn pids(options: &Options, id: &str) -> Result<Vec<i32>, StateError> {
    let record = StateDir::open(&options.root, id)?.read()?;
    let record = record.ok_or_else(|| StateError::NotFound(id.to_owned()))?;
    let processes = [Some(record.supervisor), record.vmm].into_iter().flatten();
    let alive = processes.filter(|process| process.open().is_some());
    Ok(alive.map(|process| process.pid).collect())
}

/// The states of all containers, by id.
pub(super) fn all(options: &Options) -> Result<Vec<State>, StateError> {
    let mut states = Vec::new();
    for id in StateDir::list(&options.root)? {
        match state(options, &id) {
            Ok(mut state) => {
                state.owner = owner(options, &id);
                states.push(state);
            }
            // Just claimed, or just removed.
            Err(StateError::NotFound(_)) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(states)
}

/// The name of who made container `id`, or the number where there is no name.
fn owner(options: &Options, id: &str) -> String {
    let Ok(Ok(uid)) = StateDir::open(&options.root, id).map(|state| state.owner()) else {
        return String::new();
    };
    match User::from_uid(uid.into()) {
        Ok(Some(user)) => user.name,
        _ => uid.to_string(),
    }
}

/// A container whose supervisor, or stand-in, is dead has stopped, whatever was written last.
fn of(record: Record, id: &str, in_sandbox: Option<Status>) -> Option<State> {
    let alive = record.supervisor.open().is_some();
    let container = record.containers.into_iter().find(|c| c.id == id)?;
    let status = match (container.status, in_sandbox) {
        _ if !alive => Status::Stopped,
        (Status::Stopped, _) => Status::Stopped,
        (status, in_sandbox) => in_sandbox.unwrap_or(status),
    };
    let pid = record.pid.filter(|_| status != Status::Stopped);
    Some(State {
        oci_version: VERSION,
        id: container.id,
        pid: pid.unwrap_or(0),
        status,
        bundle: container.bundle,
        rootfs: container.rootfs,
        created: Time::of(container.created_ns).rfc3339(),
        annotations: container.annotations,
        owner: String::new(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::{ContainerRecord, ProcessRef};

    fn record(supervisor: ProcessRef) -> Record {
        Record {
            vmm: ProcessRef::of(1),
            pid: Some(1),
            containers: vec![ContainerRecord {
                id: "web".into(),
                bundle: "/b".into(),
                rootfs: "/b/rootfs".into(),
                status: Status::Running,
                created_ns: 951_782_400_000_000_007,
                exit_status: None,
                annotations: BTreeMap::new(),
                poststop: Vec::new(),
                stand_in: None,
            }],
            ..Record::new("web", supervisor)
        }
    }

    #[test]
    fn state_has_the_specifications_names() {
        let this = ProcessRef::of(std::process::id().try_into().unwrap()).unwrap();
        let state = serde_json::to_value(of(record(this), "web", None).unwrap()).unwrap();
        assert_eq!(
            state,
            serde_json::json!({
                "ociVersion": VERSION, "id": "web", "pid": 1, "status": "running",
                "bundle": "/b", "rootfs": "/b/rootfs", "created": "2000-02-29T00:00:00.000000007Z",
                "owner": "",
            })
        );
    }

    #[test]
    fn a_wrong_state_is_refused_in_runcs_words() {
        let this = ProcessRef::of(std::process::id().try_into().unwrap()).unwrap();
        let state = of(record(this), "web", None).unwrap();
        assert!(state.expect_one_of(&[Status::Running], "").is_ok());
        let error = state.expect_one_of(&[Status::Paused], "container not paused");
        assert_eq!(
            error.unwrap_err().to_string(),
            "container not paused: web is running"
        );
    }

    #[test]
    fn container_of_a_dead_supervisor_has_stopped() {
        let dead = ProcessRef {
            pid: 1,
            start_time: u64::MAX,
        };
        let state = of(record(dead), "web", None).unwrap();
        assert_eq!((state.status, state.pid), (Status::Stopped, 0));
    }
}
