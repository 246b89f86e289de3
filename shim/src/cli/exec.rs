//! `husk exec`: another process in a running container, in the foreground.
//!
//! It is the container's own `process` with another command line, or a `process` object from a file.

use std::os::fd::AsFd as _;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, anyhow};
use oci_spec::runtime::{Process, Spec};

use super::Failure;
use super::foreground::{attend, block_on, exit_code, no_program, unless_ended};
use super::record::{self, State};
use super::signals::Signals;
use super::tasks::{Streams, Task};
use crate::config::Options;
use crate::state::Status;
use crate::supervise;
use crate::terminal::Terminal;

/// Run another command in a running container
///
/// The command has this one's standard input, output and error, or with --tty its terminal, and its exit status is this one's.
#[derive(Debug, clap::Args)]
pub(super) struct ExecArgs {
    /// Give the command a terminal
    #[arg(short, long)]
    tty: bool,
    /// The command's working directory
    #[arg(long, value_name = "DIR")]
    cwd: Option<PathBuf>,
    /// Set an environment variable; may be given several times
    #[arg(short, long = "env", value_name = "NAME=VALUE")]
    envs: Vec<String>,
    /// User and group ids to run as
    #[arg(short, long, value_name = "UID[:GID]", value_parser = user)]
    user: Option<(u32, Option<u32>)>,
    /// Take all of it from an OCI process object in FILE
    #[arg(short, long, value_name = "FILE", conflicts_with_all = ["tty", "cwd", "envs", "user", "command"])]
    process: Option<PathBuf>,
    /// The container
    id: String,
    /// The command and its arguments
    #[arg(
        trailing_var_arg = true,
        allow_hyphen_values = true,
        required_unless_present = "process"
    )]
    command: Vec<String>,
}

/// Runs it to its end.
pub(super) fn run(options: &Options, args: &ExecArgs) -> Result<ExitCode, Failure> {
    let state = record::state(options, &args.id)?;
    if state.status != Status::Running {
        return Err(anyhow!("{} is {}, not running", args.id, state.status).into());
    }
    let process = process(&state, args)?;
    let terminal = if process.terminal() == Some(true) {
        Some(Terminal::open(std::io::stdin().as_fd())?)
    } else {
        None
    };
    let json = serde_json::to_vec(&process)?;
    block_on(live(options, args, json, terminal.as_ref()))
}

async fn live(
    options: &Options,
    args: &ExecArgs,
    process: Vec<u8>,
    terminal: Option<&Terminal>,
) -> Result<ExitCode, Failure> {
    let mut signals = Signals::catch().context("cannot catch signals")?;
    let supervisor = supervise::connect(&options.root, &args.id).await?;
    // Unique while this process lives, and the exec does not outlive it.
    let exec_id = format!("exec-{}", std::process::id());
    let task = Task::exec(supervisor, &args.id, &exec_id);
    let streams = Streams::own(terminal.is_some());
    unless_ended(&mut signals, task.create_exec(process, streams))
        .await?
        .map_err(no_program)?;
    let status = attend(&task, terminal, &mut signals).await;
    if let Err(error) = task.delete().await {
        tracing::debug!(%error, "the process was not deleted by itself");
    }
    Ok(exit_code(status?))
}

/// The process to run, from the file or from the container's own.
fn process(state: &State, args: &ExecArgs) -> anyhow::Result<Process> {
    if let Some(path) = &args.process {
        let json =
            std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        return serde_json::from_slice(&json)
            .with_context(|| format!("{} is not an OCI process", path.display()));
    }
    let path = state.bundle.join("config.json");
    let json = std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let spec: Spec = serde_json::from_slice(&json)
        .with_context(|| format!("{} is not an OCI configuration", path.display()))?;
    let process = spec
        .process()
        .clone()
        .ok_or_else(|| anyhow!("{} has no process", path.display()))?;
    Ok(adapted(process, args))
}

fn adapted(mut process: Process, args: &ExecArgs) -> Process {
    process.set_args(Some(args.command.clone()));
    process.set_terminal(Some(args.tty));
    if let Some(cwd) = &args.cwd {
        process.set_cwd(cwd.clone());
    }
    if let Some((uid, gid)) = args.user {
        let user = process.user_mut();
        user.set_uid(uid);
        if let Some(gid) = gid {
            user.set_gid(gid);
        }
    }
    let mut env = process.env().clone().unwrap_or_default();
    env.extend(args.envs.iter().cloned());
    process.set_env(Some(env));
    process
}

fn user(text: &str) -> Result<(u32, Option<u32>), String> {
    let id = |text: &str| {
        text.parse()
            .map_err(|_| format!("{text:?} is not a numeric id"))
    };
    match text.split_once(':') {
        None => Ok((id(text)?, None)),
        Some((uid, gid)) => Ok((id(uid)?, Some(id(gid)?))),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: ExecArgs,
    }

    fn parse(words: &[&str]) -> ExecArgs {
        Line::try_parse_from([&["exec"], words].concat())
            .unwrap()
            .args
    }

    #[test]
    fn command_keeps_its_own_options() {
        let args = parse(&["-t", "web", "ls", "-l", "--all"]);
        assert!(args.tty);
        assert_eq!(args.command, ["ls", "-l", "--all"]);
    }

    #[test]
    fn process_is_the_containers_own_but_for_what_was_asked() {
        let args = parse(&["-u", "5:6", "-e", "A=b", "--cwd", "/x", "web", "id"]);
        let own = Process::default();
        let process = adapted(own.clone(), &args);
        assert_eq!(process.args().as_deref(), Some(&["id".to_owned()][..]));
        assert_eq!((process.user().uid(), process.user().gid()), (5, 6));
        assert_eq!(process.cwd().to_str(), Some("/x"));
        assert_eq!(process.terminal(), Some(false));
        assert_eq!(process.env().as_ref().unwrap().last().unwrap(), "A=b");
        assert_eq!(process.capabilities(), own.capabilities());
    }

    #[test]
    fn user_names_are_refused() {
        assert!(user("root").is_err());
        assert_eq!(user("0"), Ok((0, None)));
    }
}
