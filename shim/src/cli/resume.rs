//! `husk resume`: a paused container goes on.

use std::process::ExitCode;

use anyhow::Context as _;

use super::Failure;
use super::foreground::block_on;
use super::record;
use super::tasks::Task;
use crate::config::Options;
use crate::state::Status;

/// Let a paused container go on
#[derive(Debug, clap::Args)]
pub(super) struct ResumeArgs {
    /// The container
    id: String,
}

/// Resumes it.
pub(super) fn run(options: &Options, args: &ResumeArgs) -> Result<ExitCode, Failure> {
    record::state(options, &args.id)?.expect_one_of(&[Status::Paused], "container not paused")?;
    block_on(async {
        let task = Task::connect(options, &args.id).await?;
        task.resume()
            .await
            .with_context(|| format!("cannot resume {}", args.id))?;
        Ok(ExitCode::SUCCESS)
    })
}
