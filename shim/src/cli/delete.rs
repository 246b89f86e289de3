//! `husk delete`: what a container had is removed, by the record on disk.
//!
//! ```text
//!   supervisor lives:  [created, or --force: kill] ─► it ends with the container, or is killed ─┐
//!   supervisor dead:  ────────────────────────────────────────────────────────────────────────┴─► locked: see `remains`
//! ```

use std::process::ExitCode;

use anyhow::anyhow;
use nix::libc::SIGKILL;

use super::foreground::block_on;
use super::tasks::Task;
use super::{Failure, ending, record, remains};
use crate::config::Options;
use crate::deadlines::{CLEANER, ENDING, KILL_ORDER};
use crate::state::{Record, StateDir, StateError, Status};

/// Remove a stopped container
#[derive(Debug, clap::Args)]
pub(super) struct DeleteArgs {
    /// Kill it first if it runs; a container that is not there is no error
    #[arg(short, long)]
    force: bool,
    /// The container
    id: String,
}

/// Removes the container, whatever it does.
pub(super) fn by_force(options: &Options, id: &str) -> Result<ExitCode, Failure> {
    let args = DeleteArgs {
        force: true,
        id: id.to_owned(),
    };
    run(options, &args)
}

/// Removes it.
pub(super) fn run(options: &Options, args: &DeleteArgs) -> Result<ExitCode, Failure> {
    let state = match StateDir::open(&options.root, &args.id) {
        Err(StateError::NotFound(_)) if args.force => return Ok(ExitCode::SUCCESS),
        state => state?,
    };
    let known = state.read()?;
    let was_shut_down = match &known {
        Some(record) if record.supervisor.open().is_some() => end(options, args, record)?,
        _ => false,
    };
    match state.lock(CLEANER) {
        Err(StateError::NotFound(_)) => {
            // Its supervisor has removed it, and not run the hooks that are owed; or somebody else has.
            if let Some(record) = known.filter(|_| was_shut_down) {
                block_on(async {
                    remains::poststop(&record).await;
                    Ok(())
                })?;
            }
            return Ok(ExitCode::SUCCESS);
        }
        locked => locked?,
    }
    let mut record = state.read()?;
    // Its supervisor has forgotten the container, and could not remove all of it: the hooks are owed as if it had.
    if let (true, Some(record), Some(known)) = (was_shut_down, &mut record, known)
        && record.containers.is_empty()
    {
        record.containers = known.containers;
    }
    block_on(async { Ok(remains::remove(options, &state, record.as_ref()).await?) })?;
    Ok(ExitCode::SUCCESS)
}

/// Ends the container, if that may be, and with it its supervisor. Returns whether that was told to shut down.
fn end(options: &Options, args: &DeleteArgs, record: &Record) -> Result<bool, Failure> {
    let status = match record::state(options, &args.id) {
        Ok(state) => Some(state.status),
        Err(StateError::NotFound(_)) => None,
        Err(error) => return Err(error.into()),
    };
    let may_end = args.force || matches!(status, Some(Status::Stopped | Status::Created));
    if !may_end {
        let status = status.unwrap_or(Status::Creating);
        let words = "cannot delete container";
        return Err(anyhow!("{words} {} that is not stopped: {status}", args.id).into());
    }
    // One that is being made cannot be killed; its sandbox is given up, if it is its own.
    let is_unmade = matches!(status, None | Some(Status::Creating)) && record.sandbox.is_none();
    let told = match status {
        Some(Status::Stopped) => Ok(()),
        _ if is_unmade => block_on(shut_down(options, args)),
        _ => block_on(kill(options, args)),
    };
    if let Err(failure) = told {
        tracing::debug!("it was not ended by its supervisor: {:#}", failure.error);
    }
    ending::enforce(record.supervisor, ENDING)?;
    Ok(is_unmade)
}

async fn shut_down(options: &Options, args: &DeleteArgs) -> Result<(), Failure> {
    let task = Task::connect(options, &args.id).await?;
    Ok(task.shutdown().await?)
}

async fn kill(options: &Options, args: &DeleteArgs) -> Result<(), Failure> {
    let killed = async {
        let task = Task::connect(options, &args.id).await?;
        Ok(task.kill(SIGKILL.unsigned_abs(), false).await?)
    };
    tokio::time::timeout(KILL_ORDER, killed).await?
}
