//! What a dead supervisor left behind, removed by its record on disk.
//!
//! ```text
//!   kill the VMM, should it live ─► remove the cgroup ─► unmount ─► remove the state directory ─► poststop hooks
//!   (a member: the supervisor of its sandbox removes it)
//! ```
//!
//! The mounts of a sandbox are its supervisor's own and have gone with it; only where somebody has mounted more below its directory
//! there is something to unmount.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use nix::libc::SIGKILL;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::mount::UnmountFlags;
use rustix::process::{Signal, pidfd_send_signal};

use super::tasks::Task;
use crate::cgroup::Cgroup;
use crate::config::Options;
use crate::deadlines::{KILLED, LEAVE_SANDBOX};
use crate::hooks::{self, HookState};
use crate::state::{ProcessRef, Record, StateDir, Status};

/// Between two attempts.
const AGAIN: Duration = Duration::from_millis(100);

/// Of a line of `/proc/self/mountinfo`, from 0.
const MOUNT_POINT_FIELD: usize = 4;

/// Removes all of it, and runs the hooks that are owed; `record` is None when the supervisor did not get so far as to write one. Says what
/// there was beside the state directory.
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
    state.remove()?;
    if owes_hooks(record, was_there) {
        poststop(record).await;
    }
    Ok(removed)
}

/// Removes all but the state directory. Says what there was.
pub(super) fn stop(state: &StateDir, record: &Record) -> anyhow::Result<Vec<String>> {
    let mut removed = Vec::new();
    let cgroup = record.cgroup.clone().map(Cgroup::at);
    if let Some(vmm) = record.vmm.filter(|vmm| vmm.open().is_some()) {
        removed.push(format!("VM {}", vmm.pid));
    }
    // Of a member nothing is in it but what stood for it.
    if let Some(cgroup) = cgroup.as_ref().filter(|_| record.sandbox.is_none()) {
        cgroup.kill().context("cannot empty the cgroup")?;
    }
    record.vmm.map_or(Ok(()), end)?;
    if let Some(cgroup) = cgroup.filter(|cgroup| cgroup.dir().exists()) {
        cgroup.remove().context("cannot remove the cgroup")?;
        removed.push(format!("cgroup {}", cgroup.dir().display()));
    }
    for mount in mounts_below(state.path())? {
        rustix::mount::unmount(&mount, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)
            .with_context(|| format!("cannot unmount {}", mount.display()))?;
        removed.push(format!("mount {}", mount.display()));
    }
    Ok(removed)
}

/// The mount points below a directory, the innermost first.
fn mounts_below(dir: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let dir = std::path::absolute(dir).context("cannot find the state directory")?;
    let table = std::fs::read("/proc/self/mountinfo").context("cannot read the mount table")?;
    let mut mounts: Vec<PathBuf> = table
        .split(|byte| *byte == b'\n')
        .filter_map(|line| line.split(|byte| *byte == b' ').nth(MOUNT_POINT_FIELD))
        .map(|field| PathBuf::from(OsString::from_vec(unescaped(field))))
        .filter(|path| path.starts_with(&dir))
        .collect();
    // A mount is listed after the one it is mounted on.
    mounts.reverse();
    Ok(mounts)
}

/// The table writes a blank, a tab, a line feed and a backslash as a backslash and three octal digits.
fn unescaped(field: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let [first, behind @ ..] = rest {
        let octal = |digit: u8| {
            (b'0'..=b'7')
                .contains(&digit)
                .then(|| u16::from(digit - b'0'))
        };
        let byte = match (first, behind) {
            (b'\\', [a, b, c, ..]) => octal(*a)
                .zip(octal(*b))
                .zip(octal(*c))
                .and_then(|((a, b), c)| u8::try_from(a * 64 + b * 8 + c).ok()),
            _ => None,
        };
        rest = if byte.is_some() { &behind[3..] } else { behind };
        bytes.push(byte.unwrap_or(*first));
    }
    bytes
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
        let record = Record {
            id: "web".into(),
            bundle: "/b".into(),
            created_ns: 0,
            sandbox: None,
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
        remove(&options(root.path()), &state, Some(&record))
            .await
            .unwrap();
        assert!(!state.path().exists());
        assert!(vmm.try_wait().unwrap().is_some());
    }

    #[test]
    fn mount_points_with_odd_names_are_read() {
        assert_eq!(unescaped(br"/a\040b\134c"), br"/a b\c");
        assert_eq!(unescaped(br"/a\04\777"), br"/a\04\777");
    }

    #[tokio::test]
    async fn claim_without_a_record_is_removed() {
        let root = tempfile::tempdir().unwrap();
        let state = StateDir::create(root.path(), "web").unwrap();
        remove(&options(root.path()), &state, None).await.unwrap();
        assert!(!state.path().exists());
    }
}
