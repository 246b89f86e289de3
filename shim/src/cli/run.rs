//! `husk run`: one container in the foreground, from its start to the removal of all it had.
//!
//! ```text
//!   start a supervisor ─► create ─► start ─► wait ─► delete, shut down ─► exit with the container's status
//!                         (signals and the terminal's size are passed on while it runs)
//! ```
//!
//! The supervisor takes this process's three standard descriptors, so no byte of the container passes through here, and it watches
//! this process: should that be killed, the container ends with it. Ways to fail: the bundle is wrong, no guest comes up, the program
//! cannot be executed (127 or 126), or a signal asks to end before there is a program; nothing is left behind in any case.

use std::future::Future;
use std::io::Write as _;
use std::os::fd::AsFd as _;
use std::os::raw::c_int;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use nix::libc::SIGWINCH;

use super::Failure;
use super::signals::Signals;
use super::tasks::{Streams, Task, TaskError};
use crate::config::Options;
use crate::supervise::{self, StartArgs};
use crate::terminal::{RawMode, Terminal};

/// How long after a failed start its exit status is waited for; the agent sends it right behind the error.
const FAILED_START: Duration = Duration::from_secs(2);

/// Run a container in the foreground and exit with its status
///
/// The container has this command's standard input, output and error, or its terminal if process.terminal is true in the bundle's
/// config.json. Signals are passed on to it. When it has ended, nothing of it is left.
#[derive(Debug, clap::Args)]
pub(super) struct RunArgs {
    /// The bundle's directory, with config.json in it
    #[arg(short, long, value_name = "DIR", default_value = ".")]
    bundle: PathBuf,
    /// Write the container's process id on this host to FILE
    #[arg(long, value_name = "FILE")]
    pid_file: Option<PathBuf>,
    /// A name for the container, not in use yet
    id: String,
}

/// Runs it to its end.
pub(super) fn run(options: &Options, args: &RunArgs) -> Result<ExitCode, Failure> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot begin")?
        .block_on(foreground(options, args))
}

async fn foreground(options: &Options, args: &RunArgs) -> Result<ExitCode, Failure> {
    let bundle = std::path::absolute(&args.bundle).context("cannot find the bundle")?;
    let terminal = if wants_terminal(&bundle)? {
        Some(Terminal::open(std::io::stdin().as_fd())?)
    } else {
        None
    };
    let mut signals = Signals::catch().context("cannot catch signals")?;
    let start = StartArgs {
        options,
        id: &args.id,
        owner: Some(std::process::id()),
    };
    let supervisor = unless_ended(&mut signals, supervise::start(&start)).await??;
    let task = Task::new(supervisor.tasks, &args.id);
    let status = attend(&task, args, &bundle, terminal.as_ref(), &mut signals).await;
    let removed = remove(&task).await;
    let status = status?;
    removed.with_context(|| format!("cannot remove {}", args.id))?;
    Ok(exit_code(status))
}

/// The container's life up to its exit status. The terminal is as before when this returns.
async fn attend(
    task: &Task,
    args: &RunArgs,
    bundle: &Path,
    terminal: Option<&Terminal>,
    signals: &mut Signals,
) -> Result<u32, Failure> {
    let streams = Streams::own(terminal.is_some());
    let pid = unless_ended(signals, task.create(bundle, terminal.is_some(), streams))
        .await?
        .with_context(|| format!("cannot create {}", args.id))?;
    if let Some(path) = &args.pid_file {
        write_pid(path, pid)
            .with_context(|| format!("cannot write the pid file {}", path.display()))?;
    }
    let raw = terminal.map(Terminal::raw).transpose()?;
    if let Some(terminal) = terminal {
        resize(task, terminal).await;
    }
    if let Err(error) = unless_ended(signals, task.start()).await? {
        return Err(Failure {
            code: failed_start_code(task).await,
            error: anyhow!(error).context(format!("cannot start {}", args.id)),
        });
    }
    watch(task, terminal, signals, raw).await
}

/// Passes signals on until the container has ended.
async fn watch(
    task: &Task,
    terminal: Option<&Terminal>,
    signals: &mut Signals,
    _raw: Option<RawMode<'_>>,
) -> Result<u32, Failure> {
    let ended = task.wait();
    tokio::pin!(ended);
    loop {
        tokio::select! {
            status = &mut ended => return Ok(status.context("the container was lost")?),
            signal = signals.next() => match (signal, terminal) {
                (SIGWINCH, Some(terminal)) => resize(task, terminal).await,
                // Says something about our terminal, which the container does not have.
                (SIGWINCH, None) => {}
                _ => pass_on(task, signal).await,
            },
        }
    }
}

/// A size that does not arrive is no reason to end a container.
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

/// The container may have ended in between, so a signal that does not arrive is no error.
async fn pass_on(task: &Task, signal: c_int) {
    if let Err(error) = task.kill(signal.unsigned_abs()).await {
        tracing::debug!(%error, signal, "a signal was not passed on");
    }
}

/// Waits for `step`, but not when a signal asks to end: then the exit status is 128 + its number, as a shell has it.
async fn unless_ended<T>(
    signals: &mut Signals,
    step: impl Future<Output = T>,
) -> Result<T, Failure> {
    tokio::select! {
        done = step => Ok(done),
        signal = signals.ending() => Err(Failure {
            code: exit_code(128 + signal.unsigned_abs()),
            error: anyhow!("ended by signal {signal} before the container ran"),
        }),
    }
}

/// 127 or 126 when the program was not found or not executable, else our own failure.
async fn failed_start_code(task: &Task) -> ExitCode {
    match tokio::time::timeout(FAILED_START, task.wait()).await {
        Ok(Ok(status @ (126 | 127))) => exit_code(status),
        _ => ExitCode::FAILURE,
    }
}

/// Takes everything down: whatever of the container there still is, then the supervisor.
async fn remove(task: &Task) -> Result<(), TaskError> {
    if let Err(error) = task.delete().await {
        tracing::debug!(%error, "the container was not deleted by itself");
    }
    task.shutdown().await
}

/// Whether the bundle's process is to have a terminal. Everything else in the configuration is the supervisor's to judge.
fn wants_terminal(bundle: &Path) -> Result<bool, anyhow::Error> {
    let path = bundle.join("config.json");
    let text = std::fs::read_to_string(&path).with_context(|| {
        format!(
            "cannot read {} (a bundle is a directory with config.json; husk spec writes one)",
            path.display()
        )
    })?;
    let spec: oci_spec::runtime::Spec =
        serde_json::from_str(&text).with_context(|| format!("{} is wrong", path.display()))?;
    let process = spec.process().as_ref();
    Ok(process.and_then(oci_spec::runtime::Process::terminal) == Some(true))
}

/// Whoever watches for the file must never see it half written.
fn write_pid(path: &Path, pid: u32) -> std::io::Result<()> {
    let mut name = std::ffi::OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    let new = path.with_file_name(name);
    std::fs::File::create(&new)?.write_all(pid.to_string().as_bytes())?;
    std::fs::rename(&new, path)
}

fn exit_code(status: u32) -> ExitCode {
    ExitCode::from(u8::try_from(status).unwrap_or(u8::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pid_file_holds_the_number_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pid");
        write_pid(&path, 4711).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "4711");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn broken_configuration_is_told_with_its_place() {
        let bundle = tempfile::tempdir().unwrap();
        std::fs::write(bundle.path().join("config.json"), "{\n  \"process\": 7\n}").unwrap();
        let error = format!("{:#}", wants_terminal(bundle.path()).unwrap_err());
        assert!(error.contains("config.json is wrong"), "{error}");
        assert!(error.contains("line 2 column"), "{error}");
    }

    #[test]
    fn missing_bundle_is_told_with_what_to_do() {
        let error = format!("{:#}", wants_terminal(Path::new("/nowhere")).unwrap_err());
        assert!(error.contains("/nowhere/config.json"), "{error}");
        assert!(error.contains("husk spec"), "{error}");
    }
}
