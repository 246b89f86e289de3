//! What a dead supervisor left behind, removed by its record on disk.
//!
//! ```text
//!   kill the VMM, should it live ─► remove the cgroup ─► remove the state directory ─► poststop hooks
//! ```
//!
//! The mounts of a sandbox are its supervisor's own and have gone with it.

use std::time::Duration;

use anyhow::{Context as _, anyhow};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Signal, pidfd_send_signal};

use crate::cgroup::Cgroup;
use crate::hooks::{self, HookState};
use crate::state::{ProcessRef, Record, StateDir, Status};

/// For a killed process to end.
const KILLED: Duration = Duration::from_secs(3);

/// Removes all of it; `record` is None when the supervisor did not get so far as to write one.
pub(super) fn remove(state: &StateDir, record: Option<&Record>) -> anyhow::Result<()> {
    if let Some(record) = record {
        let cgroup = record.cgroup.clone().map(Cgroup::at);
        if let Some(cgroup) = &cgroup {
            cgroup.kill().context("cannot empty the cgroup")?;
        }
        record.vmm.map_or(Ok(()), end)?;
        if let Some(cgroup) = cgroup {
            cgroup.remove().context("cannot remove the cgroup")?;
        }
    }
    Ok(state.remove()?)
}

/// Runs the hooks that the supervisor did not live to run.
pub(super) async fn poststop(record: &Record) {
    for container in &record.containers {
        let mut state = HookState::new(&container.id, Status::Stopped, 0, &container.bundle);
        state.annotations.clone_from(&container.annotations);
        hooks::run_anyway(&container.poststop, &state).await;
    }
}

/// Ends the VMM and waits for its end.
fn end(vmm: ProcessRef) -> anyhow::Result<()> {
    let Some(pidfd) = vmm.open() else {
        return Ok(());
    };
    // It may have ended by itself in between, as it does when its supervisor is gone.
    if let Err(error) = pidfd_send_signal(&pidfd, Signal::KILL) {
        tracing::debug!(%error, "the VMM was not killed");
    }
    let mut ended = [PollFd::new(&pidfd, PollFlags::IN)];
    let deadline = Timespec::try_from(KILLED).context("cannot wait for the VMM")?;
    match poll(&mut ended, Some(&deadline)).context("cannot wait for the VMM")? {
        0 => Err(anyhow!("the killed VMM does not end")),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn remains_of_a_dead_supervisor_are_removed() {
        let root = tempfile::tempdir().unwrap();
        let state = StateDir::create(root.path(), "web").unwrap();
        let mut vmm = Command::new("sleep").arg("1000").spawn().unwrap();
        let record = Record {
            id: "web".into(),
            bundle: "/b".into(),
            created_ns: 0,
            supervisor: ProcessRef {
                pid: 1,
                start_time: u64::MAX,
            },
            vmm: ProcessRef::of(vmm.id().try_into().unwrap()),
            pid: None,
            cgroup: None,
            containers: Vec::new(),
            ended: None,
        };
        remove(&state, Some(&record)).unwrap();
        assert!(!state.path().exists());
        assert!(vmm.try_wait().unwrap().is_some());
    }

    #[test]
    fn claim_without_a_record_is_removed() {
        let root = tempfile::tempdir().unwrap();
        let state = StateDir::create(root.path(), "web").unwrap();
        remove(&state, None).unwrap();
        assert!(!state.path().exists());
    }
}
