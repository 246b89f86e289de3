//! `husk pause`: all processes of a container stop where they are. With the last container of a VM, so does the VM.

use std::process::ExitCode;

use anyhow::Context as _;

use super::Failure;
use super::foreground::block_on;
use super::record::{self, NOT_RUNNING};
use super::tasks::Task;
use crate::config::Options;
use crate::state::Status;

/// Stop all processes of a container until it is resumed
#[derive(Debug, clap::Args)]
pub(super) struct PauseArgs {
    /// The container
    id: String,
}

/// Pauses it.
pub(super) fn run(options: &Options, args: &PauseArgs) -> Result<ExitCode, Failure> {
    record::state(options, &args.id)?
        .expect_one_of(&[Status::Created, Status::Running], NOT_RUNNING)?;
    block_on(async {
        let task = Task::connect(options, &args.id).await?;
        task.pause()
            .await
            .with_context(|| format!("cannot pause {}", args.id))?;
        Ok(ExitCode::SUCCESS)
    })
}
