//! `husk delete`: what a stopped container has is removed, by its supervisor or, if that is dead, from the record on disk.
//!
//! ```text
//!   supervisor lives:  [--force: kill, wait] ─► delete ─► shut down
//!   supervisor dead:   see `remains`
//! ```

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use nix::libc::SIGKILL;

use super::foreground::block_on;
use super::tasks::Task;
use super::{Failure, remains};
use crate::config::Options;
use crate::state::{StateDir, StateError};
use crate::supervise;

/// For a killed process to end.
const KILLED: Duration = Duration::from_secs(3);

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
    match state.read()? {
        Some(record) if record.supervisor.open().is_some() => block_on(ask(options, args))?,
        // Its supervisor died before its first word, or has not said it yet.
        None if !args.force => return Err(anyhow!("{} is being created", args.id).into()),
        record => remains::remove(&state, record)?,
    }
    Ok(ExitCode::SUCCESS)
}

async fn ask(options: &Options, args: &DeleteArgs) -> Result<(), Failure> {
    let supervisor = supervise::connect(&options.root, &args.id).await?;
    let task = Task::init(supervisor, &args.id);
    if args.force
        && task.kill(SIGKILL.unsigned_abs(), false).await.is_ok()
        && tokio::time::timeout(KILLED, task.wait()).await.is_err()
    {
        tracing::warn!("{} does not end, so its VM is ended", args.id);
    }
    match task.delete().await {
        Err(error) if !args.force => Err(anyhow!(error)
            .context(format!("cannot delete {}", args.id))
            .into()),
        _ => Ok(task
            .shutdown()
            .await
            .with_context(|| format!("cannot remove {}", args.id))?),
    }
}
