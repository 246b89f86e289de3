//! `husk start`: the program of a created container is executed.

use std::process::ExitCode;

use anyhow::Context as _;

use super::foreground::block_on;
use super::tasks::Task;
use super::{Failure, notify};
use crate::config::Options;

/// Start a created container
#[derive(Debug, clap::Args)]
pub(super) struct StartArgs {
    /// The container
    id: String,
}

/// Starts it.
pub(super) fn run(options: &Options, args: &StartArgs) -> Result<ExitCode, Failure> {
    block_on(async {
        let task = Task::connect(options, &args.id).await?;
        task.start()
            .await
            .with_context(|| format!("cannot start {}", args.id))?;
        Ok(())
    })?;
    notify::when_ready(options, &args.id)?;
    Ok(ExitCode::SUCCESS)
}
