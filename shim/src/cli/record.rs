//! What is known of a container without asking anybody: its supervisor's record on disk, and whether the supervisor lives. In the
//! words and formats of an OCI runtime.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Serialize;

use super::SPEC_VERSION;
use crate::config::Options;
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
    /// RFC 3339.
    pub(super) created: String,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    annotations: BTreeMap<String, String>,
}

/// The state of container `id`.
pub(super) fn state(options: &Options, id: &str) -> Result<State, StateError> {
    StateDir::open(&options.root, id)?
        .read()?
        .and_then(|record| of(record, id))
        .ok_or_else(|| StateError::NotFound(id.to_owned()))
}

/// The states of all containers, by id.
pub(super) fn all(options: &Options) -> Result<Vec<State>, StateError> {
    let mut states = Vec::new();
    for id in StateDir::list(&options.root)? {
        match state(options, &id) {
            Ok(state) => states.push(state),
            // Just claimed, or just removed.
            Err(StateError::NotFound(_)) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(states)
}

/// A container whose supervisor is dead has stopped, whatever was written last.
fn of(record: Record, id: &str) -> Option<State> {
    let alive = record.supervisor.open().is_some();
    let container = record.containers.into_iter().find(|c| c.id == id)?;
    let status = if alive {
        container.status
    } else {
        Status::Stopped
    };
    let pid = record.pid.filter(|_| status != Status::Stopped);
    Some(State {
        oci_version: SPEC_VERSION,
        id: container.id,
        pid: pid.unwrap_or(0),
        status,
        bundle: container.bundle,
        created: rfc3339(container.created_ns),
        annotations: container.annotations,
    })
}

/// `ns` since 1970 in UTC.
fn rfc3339(ns: u64) -> String {
    const NS: u64 = 1_000_000_000;
    const DAY: u64 = 24 * 60 * 60;
    let (seconds, fraction) = (ns / NS, ns % NS);
    let (year, month, day) = date(seconds / DAY);
    let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{fraction:09}Z")
}

/// The date of a day since 1970, in the Gregorian calendar. Years begin in March here, so that a leap day is a year's last.
fn date(days: u64) -> (u64, u64, u64) {
    const ERA_DAYS: u64 = 146_097; // 400 years
    let days = days + 719_468; // since 0000-03-01
    let (era, day_of_era) = (days / ERA_DAYS, days % ERA_DAYS);
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = (month_from_march + 2) % 12 + 1;
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    (year, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::{ContainerRecord, ProcessRef};

    fn record(supervisor: ProcessRef) -> Record {
        Record {
            id: "web".into(),
            bundle: "/b".into(),
            created_ns: 0,
            supervisor,
            vmm: ProcessRef::of(1),
            pid: Some(1),
            cgroup: None,
            containers: vec![ContainerRecord {
                id: "web".into(),
                bundle: "/b".into(),
                status: Status::Running,
                created_ns: 951_782_400_000_000_007,
                exit_status: None,
                annotations: BTreeMap::new(),
                poststop: Vec::new(),
            }],
            ended: None,
        }
    }

    #[test]
    fn state_has_the_specifications_names() {
        let this = ProcessRef::of(std::process::id().try_into().unwrap()).unwrap();
        let state = serde_json::to_value(of(record(this), "web").unwrap()).unwrap();
        assert_eq!(
            state,
            serde_json::json!({
                "ociVersion": SPEC_VERSION, "id": "web", "pid": 1, "status": "running",
                "bundle": "/b", "created": "2000-02-29T00:00:00.000000007Z",
            })
        );
    }

    #[test]
    fn container_of_a_dead_supervisor_has_stopped() {
        let dead = ProcessRef {
            pid: 1,
            start_time: u64::MAX,
        };
        let state = of(record(dead), "web").unwrap();
        assert_eq!((state.status, state.pid), (Status::Stopped, 0));
    }

    #[test]
    fn dates_are_right_at_their_borders() {
        assert_eq!(date(0), (1970, 1, 1));
        assert_eq!(date(11_015), (2000, 2, 28));
        assert_eq!(date(11_017), (2000, 3, 1));
        assert_eq!(date(20_453), (2025, 12, 31));
        assert_eq!(date(47_540), (2100, 2, 28));
        assert_eq!(date(47_541), (2100, 3, 1));
    }
}
