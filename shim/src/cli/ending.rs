//! The end of a container's supervisor, which comes by itself after that of its container, and at the latest when it is killed.

use std::time::Duration;

use anyhow::{Context as _, anyhow};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Signal, pidfd_send_signal};

use crate::config::Options;
use crate::deadlines::KILLED;
use crate::state::{ProcessRef, StateDir};

/// Waits until the supervisor of `id` has ended.
pub(super) fn wait(options: &Options, id: &str) -> anyhow::Result<()> {
    match StateDir::open(&options.root, id)?.read()? {
        Some(record) => ends_within(record.supervisor, None).map(drop),
        None => Ok(()),
    }
}

/// Waits for the end of `process`, and kills it when `patience` is over. Its VMM ends with it.
pub(super) fn enforce(process: ProcessRef, patience: Duration) -> anyhow::Result<()> {
    if ends_within(process, Some(patience))? {
        return Ok(());
    }
    tracing::warn!("the supervisor {} does not end and is killed", process.pid);
    if let Some(pidfd) = process.open()
        && let Err(error) = pidfd_send_signal(&pidfd, Signal::KILL)
    {
        tracing::debug!(%error, "the supervisor was not killed");
    }
    if ends_within(process, Some(KILLED))? {
        return Ok(());
    }
    Err(anyhow!("the killed supervisor does not end"))
}

/// Whether `process` ends before the deadline; without one, it does.
fn ends_within(process: ProcessRef, deadline: Option<Duration>) -> anyhow::Result<bool> {
    let Some(pidfd) = process.open() else {
        return Ok(true);
    };
    let deadline = deadline.map(Timespec::try_from).transpose()?;
    let mut ended = [PollFd::new(&pidfd, PollFlags::IN)];
    let count = rustix::io::retry_on_intr(|| poll(&mut ended, deadline.as_ref()))
        .context("cannot wait for the supervisor")?;
    Ok(count > 0)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn process_that_does_not_end_is_killed() {
        let mut child = Command::new("sleep").arg("1000").spawn().unwrap();
        let process = ProcessRef::of(child.id().try_into().unwrap()).unwrap();
        enforce(process, Duration::ZERO).unwrap();
        assert!(!child.wait().unwrap().success());
        enforce(process, Duration::ZERO).unwrap();
    }
}
