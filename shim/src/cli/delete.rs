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

/// Removes it.
pub(super) fn run(options: &Options, args: &DeleteArgs) -> Result<ExitCode, Failure> {
    let state = match StateDir::open(&options.root, &args.id) {
        Err(StateError::NotFound(_)) if args.force => return Ok(ExitCode::SUCCESS),
        state => state?,
    };
    if let Some(record) = state.read()?
        && record.supervisor.open().is_some()
    {
        end(options, args, &record)?;
    }
    match state.lock(CLEANER) {
        // Somebody else has removed it meanwhile.
        Err(StateError::NotFound(_)) => return Ok(ExitCode::SUCCESS),
        locked => locked?,
    }
    let record = state.read()?;
    block_on(async { Ok(remains::remove(options, &state, record.as_ref()).await?) })?;
    Ok(ExitCode::SUCCESS)
}

/// Ends the container, if that may be, and with it its supervisor.
fn end(options: &Options, args: &DeleteArgs, record: &Record) -> Result<(), Failure> {
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
    if status != Some(Status::Stopped)
        && let Err(failure) = block_on(kill(options, args))
    {
        tracing::debug!("it was not killed by its supervisor: {:#}", failure.error);
    }
    Ok(ending::enforce(record.supervisor, ENDING)?)
}

async fn kill(options: &Options, args: &DeleteArgs) -> Result<(), Failure> {
    let killed = async {
        let task = Task::connect(options, &args.id).await?;
        Ok(task.kill(SIGKILL.unsigned_abs(), false).await?)
    };
    tokio::time::timeout(KILL_ORDER, killed).await?
}
