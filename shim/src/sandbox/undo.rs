//! What went on in the guest after its deadline on the host: it is taken back, and until then its id is taken.
//!
//! ```text
//!   create, exec ── no answer ──► undoing ── kill, delete ··· again ··· the agent says that there is none ──► (none)
//!   start        ── no answer ──► unknown ── an exit is told ──► stopped;  delete ── the same ──► (none)
//!   pause        ── no answer ──► pausing ── resume ··· again ──► as before;  a resume likewise
//! ```
//!
//! The agent takes up calls in their order, so that what it says of a delete is said after the call that is undone. Ways to fail: none. A guest that
//! never answers is asked again, ever more rarely, until its VM ends.

use std::time::Duration;

use nix::libc::SIGKILL;
use tokio::time::Instant;

use super::{Handle, Machine, TaskError};
use crate::agent::AgentError;
use crate::container::Freezer;
use crate::deadlines::{AGENT_PAUSE, AGENT_WORK, UNDO_AGAIN};
use crate::process::ProcessKey;
use crate::rootfs::ContainerFiles;

impl Handle {
    /// Removes a process that may have been made, and then its record.
    pub(super) fn undo_making(
        &self,
        machine: Machine,
        key: ProcessKey,
        files: Option<ContainerFiles>,
    ) {
        tracing::warn!(process = %key, "it was not made in time, and is undone");
        let handle = self.clone();
        tokio::spawn(async move {
            remove_in_guest(&machine, &key).await;
            if let Some(files) = files {
                handle.remove_files(files).await;
            }
            tracing::debug!(process = %key, "it is undone");
            // It goes with the sandbox, else.
            let _ = handle.ask(move |sandbox| sandbox.forget(&key)).await;
        });
    }

    /// Lets a container go on that may be paused.
    pub(super) fn undo_pause(&self, machine: Machine, key: ProcessKey) {
        let handle = self.clone();
        tokio::spawn(async move {
            thaw_in_guest(&machine, &key).await;
            let _ = handle
                .ask(move |sandbox| sandbox.end_change(&key, Freezer::Thawed))
                .await;
        });
    }
}

/// Returns when there is no such process in the guest, or no guest.
pub(super) async fn remove_in_guest(machine: &Machine, key: &ProcessKey) {
    let mut pause = Pause::new();
    while machine.vm.end().is_none() {
        match try_to_remove(machine, key).await {
            Ok(()) => return,
            Err(error) => tracing::debug!(process = %key, "it is not removed yet: {error}"),
        }
        pause.take(machine).await;
    }
}

async fn try_to_remove(machine: &Machine, key: &ProcessKey) -> Result<(), TaskError> {
    let agent = machine.agent().await?;
    let killed = agent.signal(key, SIGKILL.unsigned_abs(), key.is_init());
    if let Err(error) = killed.await {
        tracing::debug!(process = %key, "it is not killed: {error}");
    }
    match agent.delete(key).await {
        Ok(()) => Ok(()),
        Err(error) if error.is_not_found() => Ok(()),
        Err(error) => Err(error.into()),
    }
}

async fn thaw_in_guest(machine: &Machine, key: &ProcessKey) {
    // By then a pause has come to its end in the guest, too.
    let settled = Instant::now() + AGENT_PAUSE;
    let mut pause = Pause::new();
    while machine.vm.end().is_none() {
        let resumed = match machine.agent().await {
            Ok(agent) => agent.resume(key).await,
            Err(_) => return,
        };
        match resumed {
            Ok(()) => return,
            Err(error) if error.is_not_found() => return,
            Err(AgentError::Refused { .. }) if Instant::now() >= settled => return,
            Err(error) => tracing::debug!(process = %key, "it is not resumed yet: {error}"),
        }
        pause.take(machine).await;
    }
}

/// The time between two attempts, twice as long each time.
struct Pause(Duration);

impl Pause {
    fn new() -> Self {
        Self(UNDO_AGAIN)
    }

    async fn take(&mut self, machine: &Machine) {
        tokio::select! {
            () = tokio::time::sleep(self.0) => {}
            _ = machine.vm.ended() => {}
        }
        self.0 = self.0.saturating_mul(2).min(AGENT_WORK);
    }
}
