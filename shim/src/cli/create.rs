//! `husk create`: a container that waits for `husk start`, in the background.
//!
//! ```text
//!   inspect the bundle ─► [terminal: send its master to the console socket] ─► start a supervisor ─► create ─► pid file
//! ```
//!
//! Its streams are this command's own descriptors, which its supervisor keeps when this command has ended. The supervisor then is a
//! child of whoever adopts this command's orphans, ends with the container, and has its exit status. For a container in another's
//! sandbox it is a process of that container's own, see [`member`].

use std::os::fd::{AsRawFd as _, OwnedFd};
use std::process::ExitCode;

use anyhow::{Context as _, anyhow};

use super::bundle::{self, Bundle, ContainerArgs};
use super::foreground::{block_on, no_program, unless_ended, write_pid};
use super::member::{self, Role};
use super::signals::Signals;
use super::tasks::{Streams, Task};
use super::{Failure, console, delete, notify};
use crate::config::Options;
use crate::supervise::{self, StartArgs};

/// Create a container that waits for its start
///
/// The container keeps this command's standard input, output and error.
#[derive(Debug, clap::Args)]
pub(super) struct CreateArgs {
    #[command(flatten)]
    container: ContainerArgs,
}

/// Creates it.
pub(super) fn run(options: &Options, args: &CreateArgs) -> Result<ExitCode, Failure> {
    in_background(options, &args.container, false)
}

/// Creates a container in the background, and starts it if `start`. On an error nothing of it is left.
pub(super) fn in_background(
    options: &Options,
    args: &ContainerArgs,
    start: bool,
) -> Result<ExitCode, Failure> {
    let bundle = bundle::inspect(options, args)?;
    of_bundle(options, args, bundle, start)
}

fn of_bundle(
    options: &Options,
    args: &ContainerArgs,
    bundle: Bundle,
    start: bool,
) -> Result<ExitCode, Failure> {
    match (bundle.host.sandbox.clone(), args.report_to) {
        (Some(sandbox), Some(report_to)) => {
            let role = Role::Background { report_to, start };
            member::stand(options, args, bundle, &sandbox, role)
        }
        (Some(_), None) => {
            let code = member::in_background(options, args, &bundle, start)?;
            if start && code == ExitCode::SUCCESS {
                notify::when_ready(options, &args.id)?;
            }
            Ok(code)
        }
        // Who started this process had found one, and has not passed on what a VM of its own would
        // need, as the console socket.
        (None, Some(_)) => {
            Err(anyhow!("the container whose namespaces {} names has ended", args.id).into())
        }
        (None, None) => in_own_vm(options, args, &bundle, start),
    }
}

fn in_own_vm(
    options: &Options,
    args: &ContainerArgs,
    bundle: &Bundle,
    start: bool,
) -> Result<ExitCode, Failure> {
    let terminal = console::of_background(bundle.host.terminal, args.console_socket.as_deref())?;
    let streams = match &terminal {
        Some(slave) => Streams::terminal(slave.as_raw_fd())?,
        None => Streams::own(false)?,
    };
    block_on(create(options, args, bundle, streams))?;
    // The supervisor has it by now.
    drop::<Option<OwnedFd>>(terminal);
    if start {
        start_created(options, &args.id)?;
        notify::when_ready(options, &args.id)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// One that does not start is removed, and the hooks that it is owed are run.
fn start_created(options: &Options, id: &str) -> Result<(), Failure> {
    let started = block_on(async {
        let mut signals = Signals::catch().context("cannot catch signals")?;
        let task = Task::connect(options, id).await?;
        unless_ended(&mut signals, task.start())
            .await?
            .map_err(no_program)
    });
    if started.is_err()
        && let Err(failure) = delete::by_force(options, id)
    {
        tracing::warn!("it is not removed: {:#}", failure.error);
    }
    started.map(drop)
}

async fn create(
    options: &Options,
    args: &ContainerArgs,
    bundle: &Bundle,
    streams: Streams,
) -> Result<(), Failure> {
    let mut signals = Signals::catch().context("cannot catch signals")?;
    let supervisor = StartArgs {
        options,
        id: &args.id,
        owner: None,
        end_with_container: true,
    };
    let supervisor = unless_ended(&mut signals, supervise::start(&supervisor)).await??;
    let task = Task::init(supervisor, &args.id);
    let with = notify::options();
    let made = async {
        let pid = unless_ended(&mut signals, task.create(&bundle.path, streams, &with)).await?;
        let pid = pid.map_err(no_program)?;
        write_pid(args.pid_file.as_deref(), pid)?;
        Ok(())
    };
    let made: Result<(), Failure> = made.await;
    if made.is_err()
        && let Err(error) = task.shutdown().await
    {
        tracing::warn!(%error, "the supervisor did not end");
    }
    made
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::cli::{CommandLine, Verb};
    use crate::spec::HostPart;

    #[test]
    fn what_is_to_stand_for_a_member_makes_no_vm_when_the_sandbox_has_ended() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().to_str().unwrap();
        let words = ["husk", "--root", path, "create", "--report-to", "9", "web"];
        let line = CommandLine::try_parse_from(words).unwrap();
        let Verb::Create(args) = line.verb else {
            panic!("another verb");
        };
        // What is left of a look for a neighbour that has ended.
        let bundle = Bundle {
            path: root.path().to_owned(),
            host: HostPart::default(),
        };
        let made = of_bundle(&line.options, &args.container, bundle, false);
        let error = format!("{:#}", made.unwrap_err().error);
        assert!(error.contains("namespaces web names has ended"), "{error}");
        assert_eq!(std::fs::read_dir(root.path()).unwrap().count(), 0);
    }
}
