//! `husk run`: one container in the foreground, from its start to the removal of all it had.
//!
//! ```text
//!   inspect the bundle ─► start a supervisor ─► create ─► start ─► wait ─► delete, shut down ─► exit with the container's status
//!                                                                    └─ --keep: the supervisor ends and leaves the record
//! ```
//!
//! With `--detach` it is `create` and `start` in one, see [`create`].
//!
//! The supervisor takes this process's three standard descriptors, so no byte of the container passes through here, and it watches
//! this process: should that be killed, the container ends with it. Ways to fail: the bundle is wrong, no guest comes up, and those of
//! [`foreground`]; nothing is left behind in any case.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, anyhow};

use super::bundle::{self, Bundle, ContainerArgs};
use super::foreground::{self, attend, exit_code, no_program, unless_ended, write_pid};
use super::member::{self, Role};
use super::signals::Signals;
use super::tasks::{Streams, Task};
use super::{Failure, console, create, ending, notify, remains};
use crate::config::Options;
use crate::state::{ProcessRef, StateDir, StateError};
use crate::supervise::{self, StartArgs};
use crate::terminal::Terminal;

/// Run a container in the foreground and exit with its status
///
/// The container has this command's standard input, output and error, or its terminal if process.terminal is true in the bundle's
/// config.json. Signals are passed on to it. When it has ended, nothing of it is left.
#[derive(Debug, clap::Args)]
pub(super) struct RunArgs {
    /// Return when it is started; it runs on in the background
    #[arg(short, long)]
    detach: bool,
    /// Do not remove it when it has ended
    #[arg(long)]
    keep: bool,
    /// Accepted; nothing is left to reap
    #[arg(long)]
    no_subreaper: bool,
    #[command(flatten)]
    container: ContainerArgs,
}

/// Runs it to its end.
pub(super) fn run(options: &Options, args: &RunArgs) -> Result<ExitCode, Failure> {
    if args.detach {
        return create::in_background(options, &args.container, true);
    }
    console::none_in_foreground(args.container.console_socket.as_deref())?;
    let bundle = bundle::inspect(options, &args.container)?;
    if let Some(sandbox) = bundle.host.sandbox.clone() {
        let role = if args.keep {
            Role::Kept
        } else {
            Role::Foreground
        };
        return member::stand(options, &args.container, bundle, &sandbox, role);
    }
    let terminal = if bundle.host.terminal {
        Some(Terminal::find()?)
    } else {
        None
    };
    foreground::block_on(live(options, args, &bundle, terminal.as_ref()))
}

async fn live(
    options: &Options,
    args: &RunArgs,
    bundle: &Bundle,
    terminal: Option<&Terminal>,
) -> Result<ExitCode, Failure> {
    let mut signals = Signals::catch().context("cannot catch signals")?;
    let start = StartArgs {
        options,
        id: &args.container.id,
        owner: Some(ProcessRef::this()?),
        end_with_container: args.keep,
    };
    let supervisor = unless_ended(&mut signals, supervise::start(&start)).await??;
    let id = &args.container.id;
    let task = Task::init(supervisor, id);
    let status = create_and_attend(&task, options, args, bundle, terminal, &mut signals).await;
    let vm_end = vm_end(options, id);
    let removed = if args.keep && status.is_ok() {
        ending::wait(options, id)
    } else {
        remove(&task, options, id).await
    };
    let code = exit_code(status?);
    removed.with_context(|| format!("cannot remove {id}"))?;
    match vm_end {
        None => Ok(code),
        Some(reason) => Err(Failure {
            code,
            error: anyhow!("the VM ended: {reason}"),
        }),
    }
}

/// Why the VM ended, if nobody had asked it to. To be read before the record is removed.
fn vm_end(options: &Options, id: &str) -> Option<String> {
    let state = StateDir::open(&options.root, id).ok()?;
    state.read().ok()??.ended
}

async fn create_and_attend(
    task: &Task,
    options: &Options,
    args: &RunArgs,
    bundle: &Bundle,
    terminal: Option<&Terminal>,
    signals: &mut Signals,
) -> Result<u32, Failure> {
    let streams = Streams::own(bundle.host.terminal)?;
    let with = notify::options();
    let pid = unless_ended(signals, task.create(&bundle.path, streams, &with))
        .await?
        .map_err(no_program)?;
    write_pid(args.container.pid_file.as_deref(), pid)?;
    let started = || {
        notify::beside(options, &args.container.id);
        Ok(())
    };
    attend(task, terminal, signals, started).await
}

/// Takes everything down: whatever of the container there still is, then the supervisor.
async fn remove(task: &Task, options: &Options, id: &str) -> anyhow::Result<()> {
    if let Err(error) = task.delete().await {
        tracing::debug!(%error, "the container was not deleted by itself");
    }
    if let Err(error) = task.shutdown().await {
        tracing::debug!(%error, "the supervisor did not shut down by itself");
        let state = match StateDir::open(&options.root, id) {
            Err(StateError::NotFound(_)) => return Ok(()),
            state => state?,
        };
        match state.lock(Duration::ZERO) {
            Err(StateError::NotFound(_)) => return Ok(()),
            // The supervisor, or whoever cleans up behind it.
            Err(StateError::Busy(_)) => return Err(error.into()),
            locked => locked?,
        }
        remains::remove(options, &state, state.read()?.as_ref()).await?;
    }
    Ok(())
}
