//! A process in the foreground: it has our standard descriptors, our signals, our terminal's size, and its exit status is ours.
//!
//! ```text
//!   created ─► terminal raw, size ─► start ─► signals and sizes are passed on ─► exit status, terminal as before
//! ```
//!
//! Ways to fail: the program cannot be executed (127 or 126), a signal asks to end before there is a program, the supervisor is gone.

use std::future::Future;
use std::io::Write as _;
use std::os::raw::c_int;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context as _, anyhow};
use nix::libc::SIGWINCH;

use super::Failure;
use super::signals::Signals;
use super::tasks::{Task, TaskError};
use crate::terminal::Terminal;

/// The status of a process whose VM ended under it: as if killed.
pub(super) const LOST_STATUS: u32 = 137;

/// Runs a verb that talks to a supervisor.
pub(super) fn block_on<T>(verb: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot begin")?
        .block_on(verb)
}

/// Starts a created process, calls `started` when its program has been executed, and waits for its exit status. The terminal is as
/// before when this returns.
pub(super) async fn attend(
    task: &Task,
    terminal: Option<&Terminal>,
    signals: &mut Signals,
    started: impl FnOnce() -> anyhow::Result<()>,
) -> Result<u32, Failure> {
    let _raw = terminal.map(Terminal::raw).transpose()?;
    if let Some(terminal) = terminal {
        resize(task, terminal).await;
    }
    unless_ended(signals, task.start())
        .await?
        .map_err(no_program)?;
    started()?;
    accompany(task, terminal, signals).await
}

/// Waits for the exit status of a process that has been started, or will be.
pub(super) async fn accompany(
    task: &Task,
    terminal: Option<&Terminal>,
    signals: &mut Signals,
) -> Result<u32, Failure> {
    // It may have changed while the program was started.
    if let Some(terminal) = terminal {
        resize(task, terminal).await;
    }
    let ended = task.wait();
    tokio::pin!(ended);
    loop {
        tokio::select! {
            status = &mut ended => return status.map_err(lost),
            signal = signals.next() => match (signal, terminal) {
                (SIGWINCH, Some(terminal)) => resize(task, terminal).await,
                // Says something about our terminal, which the process does not have.
                (SIGWINCH, None) => {}
                _ => pass_on(task, signal).await,
            },
        }
    }
}

/// A size that does not arrive is no reason to end a process.
async fn resize(task: &Task, terminal: &Terminal) {
    match terminal.size() {
        Ok(size) => {
            if let Err(error) = task.resize(size.ws_col, size.ws_row).await {
                tracing::debug!(%error, "the terminal's size was not passed on");
            }
        }
        Err(error) => tracing::debug!(%error, "the terminal has no size"),
    }
}

/// The process may have ended in between, so a signal that does not arrive is no error.
async fn pass_on(task: &Task, signal: c_int) {
    if let Err(error) = task.kill(signal.unsigned_abs(), false).await {
        tracing::debug!(%error, signal, "a signal was not passed on");
    }
}

/// Waits for `step`, but not when a signal asks to end: then the exit status is 128 + its number, as a shell has it.
pub(super) async fn unless_ended<T>(
    signals: &mut Signals,
    step: impl Future<Output = T>,
) -> Result<T, Failure> {
    tokio::select! {
        done = step => Ok(done),
        signal = signals.ending() => Err(Failure {
            code: exit_code(128 + signal.unsigned_abs()),
            error: anyhow!("ended by signal {signal} before the program ran"),
        }),
    }
}

/// The supervisor has gone, and the process with it.
fn lost(error: TaskError) -> Failure {
    Failure {
        code: exit_code(LOST_STATUS),
        error: anyhow::Error::from(error).context("the process was lost"),
    }
}

/// The exit status says so when the program was not found (127) or cannot be executed (126).
pub(super) fn no_program(error: TaskError) -> Failure {
    Failure {
        code: error.program_status().map_or(ExitCode::FAILURE, exit_code),
        error: error.into(),
    }
}

/// Writes the pid file, if one is wanted. Whoever waits for it never sees it half written.
pub(super) fn write_pid(path: Option<&Path>, pid: u32) -> anyhow::Result<()> {
    let Some(path) = path else { return Ok(()) };
    let mut name = std::ffi::OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    let new = path.with_file_name(name);
    std::fs::File::create(&new)
        .and_then(|mut file| file.write_all(pid.to_string().as_bytes()))
        .and_then(|()| std::fs::rename(&new, path))
        .with_context(|| format!("cannot write the pid file {}", path.display()))
}

/// The status of this process that is the container's.
pub(super) fn exit_code(status: u32) -> ExitCode {
    ExitCode::from(u8::try_from(status).unwrap_or(u8::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pid_file_holds_the_number_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pid");
        write_pid(Some(&path), 4711).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "4711");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
