//! What a dead supervisor left behind, removed by its record on disk.
//!
//! ```text
//!   the state directory locked: kill the VMM, should it live ─► remove the cgroup ─► remove the state directory ─► poststop hooks
//!   (a member: the supervisor of its sandbox removes it)
//! ```
//!
//! The mounts of a sandbox are in a namespace of its supervisor's own and have gone with it. What is mounted below its directory on the host is
//! somebody else's: it stays, and the directory with it. Ways to fail: a process or a cgroup that does not go, and that.

use std::time::Duration;

use anyhow::{Context as _, anyhow};
use nix::libc::SIGKILL;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Signal, pidfd_send_signal};

use super::tasks::Task;
use crate::cgroup::Cgroup;
use crate::config::Options;
use crate::deadlines::{KILLED, LEAVE_SANDBOX};
use crate::hooks::{self, HookState};
use crate::state::{ProcessRef, Record, StateDir, Status};

/// Between two attempts.
const AGAIN: Duration = Duration::from_millis(100);

/// Removes all of it, and runs the hooks that are owed; `record` is None when there is none. To be called by who has the lock of `state`. Says
/// what there was beside the state directory.
pub(super) async fn remove(
    options: &Options,
    state: &StateDir,
    record: Option<&Record>,
) -> anyhow::Result<Vec<String>> {
    let Some(record) = record else {
        state.remove()?;
        return Ok(Vec::new());
    };
    let was_there = leave_sandbox(options, record).await;
    let removed = stop(state, record)?;
    // The id is free now, also if something is left in the directory.
    let left = state.remove();
    if owes_hooks(record, was_there) {
        poststop(record).await;
    }
    left?;
    Ok(removed)
}

/// Removes all but the state directory. Says what there was.
pub(super) fn stop(state: &StateDir, record: &Record) -> anyhow::Result<Vec<String>> {
    let mut removed = Vec::new();
    if let Some(vmm) = record.vmm.filter(|vmm| vmm.open().is_some()) {
        removed.push(format!("VM {}", vmm.pid));
    }
    // One that another has made since, at the same path, is not found.
    let recorded = record.cgroup.as_ref().and_then(Cgroup::find);
    let cgroup = recorded.or_else(|| Cgroup::find_own(state));
    // Of a member nothing is in it but what stood for it.
    if let Some(cgroup) = cgroup.as_ref().filter(|_| record.sandbox.is_none()) {
        cgroup.kill(KILLED).context("cannot empty the cgroup")?;
    }
    record.vmm.map_or(Ok(()), end)?;
    if let Some(cgroup) = cgroup {
        let path = cgroup.named().dir.display();
        cgroup
            .remove()
            .with_context(|| format!("cannot remove the cgroup {path}"))?;
        removed.push(format!("cgroup {path}"));
    }
    Ok(removed)
}

/// Has a member ended and removed by the supervisor of its sandbox, when its output is delivered. Returns whether it was there.
pub(super) async fn leave_sandbox(options: &Options, record: &Record) -> bool {
    if record.sandbox.is_none() {
        return false;
    }
    let left = async {
        loop {
            // Without its supervisor there is no sandbox.
            let Ok(task) = Task::connect(options, &record.id).await else {
                return false;
            };
            match task.delete().await {
                Ok(()) => return true,
                Err(error) if error.is_final() => return false,
                Err(error) => tracing::debug!(%error, "it is not to be removed yet"),
            }
            if task.kill(SIGKILL.unsigned_abs(), false).await.is_err() {
                // It is being created, or removed.
                tokio::time::sleep(AGAIN).await;
            } else if let Err(error) = task.wait().await {
                tracing::debug!(%error, "it has not been waited for");
            }
        }
    };
    tokio::time::timeout(LEAVE_SANDBOX, left)
        .await
        .unwrap_or_else(|_| {
            tracing::error!("{} does not leave its sandbox", record.id);
            false
        })
}

/// Whether poststop hooks are to be run for it: not if it was never made, since whoever failed to make it has run them.
pub(super) fn owes_hooks(record: &Record, was_there: bool) -> bool {
    let mut containers = record.containers.iter();
    was_there
        || record.sandbox.is_none()
        || containers.any(|container| container.status != Status::Creating)
}

/// Runs the hooks that the supervisor did not live to run. Those of a member are owed by its own record.
pub(super) async fn poststop(record: &Record) {
    let owed = record.containers.iter();
    for container in owed.filter(|container| container.stand_in.is_none()) {
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
    use std::path::Path;
    use std::process::Command;

    use clap::Parser as _;

    use super::*;
    use crate::cli::CommandLine;

    fn options(root: &Path) -> Options {
        let words = ["husk", "--root", root.to_str().unwrap(), "gc"];
        CommandLine::try_parse_from(words).unwrap().options
    }

    #[tokio::test]
    async fn remains_of_a_dead_supervisor_are_removed() {
        let root = tempfile::tempdir().unwrap();
        let state = StateDir::create(root.path(), "web").unwrap();
        let mut vmm = Command::new("sleep").arg("1000").spawn().unwrap();
        let dead = ProcessRef {
            pid: 1,
            start_time: u64::MAX,
        };
        let record = Record {
            vmm: ProcessRef::of(vmm.id().try_into().unwrap()),
            ..Record::new("web", dead)
        };
        remove(&options(root.path()), &state, Some(&record))
            .await
            .unwrap();
        assert!(!state.path().exists());
        assert!(vmm.try_wait().unwrap().is_some());
    }

    #[tokio::test]
    async fn claim_without_a_record_is_removed() {
        let root = tempfile::tempdir().unwrap();
        let state = StateDir::create(root.path(), "web").unwrap();
        remove(&options(root.path()), &state, None).await.unwrap();
        assert!(!state.path().exists());
    }
}
