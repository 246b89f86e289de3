//! `husk exec`: another process in a running container, in the foreground, or in the background by way of [`session`].
//!
//! It is the container's own `process` with another command line, or a `process` object from a file.

use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, anyhow};
use oci_spec::runtime::{Capability, LinuxCapabilities, Process};

use super::bundle::refuse_descriptors;
use super::foreground::{attend, block_on, exit_code, no_program, unless_ended, write_pid};
use super::record::{self, State};
use super::session::{self, Background};
use super::signals::Signals;
use super::tasks::{Streams, Task};
use super::{Failure, console};
use crate::config::Options;
use crate::spec;
use crate::state::{ProcessRef, Status};
use crate::terminal::Terminal;

/// Run another command in a container
///
/// The command has this one's standard input, output and error, or with --tty its terminal, and its exit status is this one's.
#[derive(Debug, clap::Args)]
pub(super) struct ExecArgs {
    #[command(flatten)]
    change: Change,
    /// Take all of it from an OCI process object in FILE; options about the process are ignored
    #[arg(short, long, value_name = "FILE", conflicts_with = "command")]
    process: Option<PathBuf>,
    /// Return when it is started; it runs on in the background
    #[arg(short, long)]
    detach: bool,
    /// Write the id of a process on this host that ends with the command, and with its status, to FILE
    #[arg(long, value_name = "FILE")]
    pid_file: Option<PathBuf>,
    /// Send the command's terminal to this socket, if it is in the background
    #[arg(long, value_name = "SOCKET")]
    console_socket: Option<PathBuf>,
    /// Must be 0: descriptors of this host cannot go into a VM
    #[arg(long, value_name = "N", default_value_t = 0)]
    preserve_fds: u32,
    /// Accepted; a command in a paused container waits for its end
    #[arg(long)]
    ignore_paused: bool,
    /// A cgroup below the container's own to run in, which is there; '/' is the container's. Without it, that of its first process
    #[arg(long, value_name = "PATH", value_parser = cgroup)]
    cgroup: Option<String>,
    /// Be the process in the background; say so to this descriptor
    #[arg(long, value_name = "FD", hide = true)]
    report_to: Option<i32>,
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

/// What is to be other than in the container's own process.
#[derive(Debug, clap::Args)]
struct Change {
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
    /// A further group to run as; may be given several times
    #[arg(short = 'g', long, value_name = "GID")]
    additional_gids: Vec<u32>,
    /// A further capability; may be given several times
    #[arg(short, long = "cap", value_name = "NAME", value_parser = capability)]
    caps: Vec<Capability>,
    /// No program gives the command privileges that it does not have
    #[arg(long)]
    no_new_privs: bool,
    /// Ignored: the VM confines instead
    #[arg(long, value_name = "PROFILE")]
    apparmor: Option<String>,
    /// Ignored: the VM confines instead
    #[arg(long, value_name = "LABEL")]
    process_label: Option<String>,
}

/// The exit status when husk itself fails, as with runc: 1 may be the command's own.
const FAILED_STATUS: u8 = 255;

/// Runs it to its end, or in the background to its start.
pub(super) fn run(options: &Options, args: &ExecArgs) -> Result<ExitCode, Failure> {
    exec(options, args).map_err(|failure| failure.or_code(FAILED_STATUS))
}

fn exec(options: &Options, args: &ExecArgs) -> Result<ExitCode, Failure> {
    refuse_descriptors(args.preserve_fds)?;
    let state = record::state(options, &args.id)?;
    if !matches!(state.status, Status::Created | Status::Running) {
        return Err(anyhow!("cannot exec in a {} container: {}", state.status, args.id).into());
    }
    let process = process(&state, args)?;
    let has_terminal = process.terminal() == Some(true);
    let json = serde_json::to_vec(&process)?;
    if args.detach {
        return Ok(in_background(options, args, &json, has_terminal)?);
    }
    console::none_in_foreground(args.console_socket.as_deref())?;
    if args.report_to.is_some() {
        session::enter(has_terminal)?;
    }
    let terminal = match (has_terminal, args.report_to) {
        (false, _) => None,
        (true, None) => Some(Terminal::find()?),
        (true, Some(_)) => Some(Terminal::given()?),
    };
    block_on(live(options, args, json, terminal.as_ref()))
}

fn in_background(
    options: &Options,
    args: &ExecArgs,
    process: &[u8],
    has_terminal: bool,
) -> anyhow::Result<ExitCode> {
    let terminal = console::of_background(has_terminal, args.console_socket.as_deref())?;
    let process = session::file_of(process).context("cannot pass the process on")?;
    let path = session::path_of(process.as_raw_fd());
    let mut words = vec!["--process".into(), path.into()];
    if let Some(cgroup) = &args.cgroup {
        words.push(format!("--cgroup={cgroup}").into());
    }
    let background = Background {
        verb: "exec",
        options: words,
        pid_file: args.pid_file.as_deref(),
        id: &args.id,
        kept: vec![process],
        terminal,
    };
    session::start(options, background)
}

async fn live(
    options: &Options,
    args: &ExecArgs,
    process: Vec<u8>,
    terminal: Option<&Terminal>,
) -> Result<ExitCode, Failure> {
    let mut signals = Signals::catch().context("cannot catch signals")?;
    let task = Task::connect(options, &args.id).await?.exec(&exec_id()?);
    let streams = Streams::own(terminal.is_some())?;
    let create = task.create_exec(process, args.cgroup.as_deref(), streams);
    unless_ended(&mut signals, create)
        .await?
        .map_err(no_program)?;
    let status = attend(&task, terminal, &mut signals, || started(args)).await;
    if let Err(error) = task.delete().await {
        tracing::debug!(%error, "the process was not deleted by itself");
    }
    Ok(exit_code(status?))
}

/// Unique: no other process has this one's id and start.
fn exec_id() -> anyhow::Result<String> {
    let this = ProcessRef::this().context("cannot read /proc")?;
    Ok(format!("exec-{}-{}", this.pid, this.start_time))
}

fn started(args: &ExecArgs) -> anyhow::Result<()> {
    write_pid(args.pid_file.as_deref(), std::process::id())?;
    if let Some(fd) = args.report_to {
        session::let_go(Path::new("/dev/null")).context("cannot let go of the streams")?;
        session::report(fd).context("cannot say that the command runs")?;
    }
    Ok(())
}

/// The process to run, from the file or from the container's own.
fn process(state: &State, args: &ExecArgs) -> anyhow::Result<Process> {
    if let Some(path) = &args.process {
        let json =
            std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        return spec::read_process(&json)
            .with_context(|| format!("{} is not an OCI process", path.display()));
    }
    let path = state.bundle.join("config.json");
    let json = std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let process = spec::process_of(&json)
        .with_context(|| format!("{} has no process to run", path.display()))?;
    let process = adapted(process, &args.change);
    Ok(with_command(process, &args.command))
}

fn with_command(mut process: Process, command: &[String]) -> Process {
    process.set_args(Some(command.to_vec()));
    process
}

fn adapted(mut process: Process, args: &Change) -> Process {
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
    if !args.additional_gids.is_empty() {
        let mut gids = process.user().additional_gids().clone().unwrap_or_default();
        gids.extend(&args.additional_gids);
        process.user_mut().set_additional_gids(Some(gids));
    }
    if args.no_new_privs {
        process.set_no_new_privileges(Some(true));
    }
    if !args.caps.is_empty() {
        let own = process.capabilities().clone().unwrap_or_default();
        process.set_capabilities(Some(with_capabilities(own, &args.caps)));
    }
    let mut env = process.env().clone().unwrap_or_default();
    env.extend(args.envs.iter().cloned());
    process.set_env(Some(env));
    process
}

/// As root has them: inherited by no program, but in force.
fn with_capabilities(mut own: LinuxCapabilities, more: &[Capability]) -> LinuxCapabilities {
    let with = |set: &Option<_>| {
        let mut set: std::collections::HashSet<_> = set.clone().unwrap_or_default();
        set.extend(more.iter().copied());
        Some(set)
    };
    let (bounding, effective) = (with(own.bounding()), with(own.effective()));
    let permitted = with(own.permitted());
    own.set_bounding(bounding)
        .set_effective(effective)
        .set_permitted(permitted);
    own
}

fn capability(text: &str) -> Result<Capability, String> {
    let name = text.to_ascii_uppercase();
    let name = name.strip_prefix("CAP_").unwrap_or(&name);
    name.parse()
        .map_err(|_| format!("there is no capability {text:?}"))
}

/// A hierarchy of version 2 has one path for all controllers.
fn cgroup(text: &str) -> Result<String, String> {
    match text.split_once(':') {
        None => Ok(text.to_owned()),
        Some((controllers, _)) => Err(format!(
            "unknown controller {controllers}: a guest's cgroups are of version 2, and have one path"
        )),
    }
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
        assert!(args.change.tty);
        assert_eq!(args.command, ["ls", "-l", "--all"]);
    }

    #[test]
    fn process_is_the_containers_own_but_for_what_was_asked() {
        let args = parse(&["-u", "5:6", "-e", "A=b", "--cwd", "/x", "web", "id"]);
        let own = Process::default();
        let process = with_command(adapted(own.clone(), &args.change), &args.command);
        assert_eq!(process.args().as_deref(), Some(&["id".to_owned()][..]));
        assert_eq!((process.user().uid(), process.user().gid()), (5, 6));
        assert_eq!(process.cwd().to_str(), Some("/x"));
        assert_eq!(process.terminal(), Some(false));
        assert_eq!(process.env().as_ref().unwrap().last().unwrap(), "A=b");
        assert_eq!(process.capabilities(), own.capabilities());
    }

    #[test]
    fn capabilities_are_added_by_either_name() {
        let args = parse(&["--cap", "CAP_SYS_TIME", "--cap", "net_admin", "web", "id"]);
        let process = adapted(Process::default(), &args.change);
        let capabilities = process.capabilities().clone().unwrap();
        for set in [capabilities.bounding(), capabilities.effective()] {
            let set = set.clone().unwrap();
            assert!(set.contains(&Capability::SysTime) && set.contains(&Capability::NetAdmin));
        }
        assert!(capability("CAP_NONE").is_err());
    }

    #[test]
    fn user_names_are_refused() {
        assert!(user("root").is_err());
        assert_eq!(user("0"), Ok((0, None)));
    }
}
