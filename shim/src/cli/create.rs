//! `husk create`: a container that waits for `husk start`, in the background.
//!
//! Its streams are this command's own descriptors, which its supervisor keeps when this command has ended.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, anyhow};

use super::Failure;
use super::bundle::{self, Bundle};
use super::foreground::{block_on, unless_ended, write_pid};
use super::signals::Signals;
use super::tasks::{Streams, Task};
use crate::config::Options;
use crate::supervise::{self, StartArgs};

/// Create a container that waits for its start
///
/// The container keeps this command's standard input, output and error.
#[derive(Debug, clap::Args)]
pub(super) struct CreateArgs {
    /// The bundle's directory, with config.json in it
    #[arg(short, long, value_name = "DIR", default_value = ".")]
    bundle: PathBuf,
    /// Write the container's process id on this host to FILE
    #[arg(long, value_name = "FILE")]
    pid_file: Option<PathBuf>,
    /// A name for the container, not in use yet
    id: String,
}

/// Creates it.
pub(super) fn run(options: &Options, args: &CreateArgs) -> Result<ExitCode, Failure> {
    let bundle = bundle::inspect(options, &args.bundle, &args.id)?;
    if bundle.terminal {
        return Err(anyhow!(
            "a container with a terminal (process.terminal) can only be run in the foreground: husk run"
        )
        .into());
    }
    block_on(create(options, args, &bundle))
}

async fn create(
    options: &Options,
    args: &CreateArgs,
    bundle: &Bundle,
) -> Result<ExitCode, Failure> {
    let mut signals = Signals::catch().context("cannot catch signals")?;
    let start = StartArgs {
        options,
        id: &args.id,
        owner: None,
    };
    let supervisor = unless_ended(&mut signals, supervise::start(&start)).await??;
    let task = Task::init(supervisor, &args.id);
    let created = make(&task, args, bundle, &mut signals).await;
    if created.is_err()
        && let Err(error) = task.shutdown().await
    {
        tracing::warn!(%error, "the supervisor did not end");
    }
    created.map(|()| ExitCode::SUCCESS)
}

async fn make(
    task: &Task,
    args: &CreateArgs,
    bundle: &Bundle,
    signals: &mut Signals,
) -> Result<(), Failure> {
    let pid = unless_ended(signals, task.create(&bundle.path, Streams::own(false)))
        .await?
        .with_context(|| format!("cannot create {}", args.id))?;
    write_pid(args.pid_file.as_deref(), pid)?;
    Ok(())
}
