//! The command line: what may be said, and which verb answers. One file per verb.

mod check;
mod create;
mod delete;
mod events;
mod exec;
mod features;
mod gc;
mod kill;
mod list;
mod pause;
mod ps;
mod refused;
mod resume;
mod run;
mod spec;
mod start;
mod state;
mod update;

/// What `run` and `create` look at before anything is started.
mod bundle;
/// Dates and times of day.
mod calendar;
/// A terminal for a process in the background.
mod console;
/// The end of a container's supervisor.
mod ending;
/// A process in the foreground.
mod foreground;
/// A process that stands for a container in another's sandbox.
mod member;
/// Whose VM a container is to be in.
mod neighbour;
/// Who waits for a container to be ready.
mod notify;
/// What is known of a container from disk.
mod record;
/// What a dead supervisor left behind.
mod remains;
/// A process in the background that stands for another.
mod session;
/// The signals to pass on.
mod signals;
/// One process, through its supervisor.
mod tasks;

use std::process::ExitCode;
use std::sync::LazyLock;

use anyhow::Context as _;
use clap::{Parser, Subcommand};

use crate::config::Options;
use crate::id_map;
use crate::supervise::{self, ServeArgs};

/// The help of `husk` itself: verbs by what one wants to do.
const HELP: &str = "\
{about}

{usage-heading} {usage}

Run containers:
  run     Run a container in the foreground and exit with its status
  exec    Run another command in a container

Step by step, as an engine does:
  create  Create a container that waits for its start
  start   Start a created container
  kill    Send a signal to a container's first process
  delete  Remove a stopped container

While it runs:
  pause   Stop all processes of a container until it is resumed
  resume  Let a paused container go on
  update  Change the limits of a container

See what there is:
  state   Print the state of a container as JSON
  list    List the containers
  ps      List the processes of a container
  events  Print what a container uses and when it runs out of memory

Set up:
  spec    Write a config.json that runs a shell in the bundle's rootfs
  check   Check that this host can run guests and that everything is installed
  features Print what of the OCI runtime specification is honoured, as JSON
  gc      Remove what crashed containers left behind

Options:
{options}

Examples:
  husk check                         is this host fit, is everything installed?
  husk spec --bundle web             write web/config.json for web/rootfs
  husk run --bundle web web-1        run it; the exit status is the container's
  husk exec --tty web-1 sh           a shell beside it

husk COMMAND --help says more about a command.
";

static VERSION: LazyLock<String> = LazyLock::new(|| {
    format!(
        "version {}\ncommit: {}\nspec: {}",
        env!("CARGO_PKG_VERSION"),
        option_env!("HUSK_COMMIT").unwrap_or("unknown"),
        crate::spec::VERSION,
    )
});

/// Run OCI containers, each in a KVM microVM of its own
#[derive(Debug, Parser)]
#[command(name = "husk", version = VERSION.as_str(), help_template = HELP, disable_help_subcommand = true)]
pub(crate) struct CommandLine {
    #[command(flatten)]
    pub(crate) options: Options,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Run(run::RunArgs),
    Exec(Box<exec::ExecArgs>),
    Create(create::CreateArgs),
    Start(start::StartArgs),
    State(state::StateArgs),
    Kill(kill::KillArgs),
    Delete(delete::DeleteArgs),
    Pause(pause::PauseArgs),
    Resume(resume::ResumeArgs),
    Update(Box<update::UpdateArgs>),
    List(list::ListArgs),
    Ps(ps::PsArgs),
    Events(events::EventsArgs),
    Features(features::FeaturesArgs),
    Gc(gc::GcArgs),
    Spec(spec::SpecArgs),
    Check(check::CheckArgs),
    /// Be the supervisor of one sandbox
    #[command(hide = true)]
    Serve(ServeArgs),
    /// Be in a new user namespace until the input ends
    #[command(hide = true, name = id_map::VERB)]
    UserNamespace,
    #[command(hide = true)]
    Checkpoint(refused::AnyArgs),
    #[command(hide = true)]
    Restore(refused::AnyArgs),
}

/// A command that did not do what it was told.
#[derive(Debug)]
pub(crate) struct Failure {
    /// The exit status of this process.
    pub(crate) code: ExitCode,
    /// Why.
    pub(crate) error: anyhow::Error,
}

impl Failure {
    /// The same with the exit status `code`, if it has none of its own yet.
    fn or_code(self, code: u8) -> Self {
        if self.code == ExitCode::FAILURE {
            Self {
                code: code.into(),
                ..self
            }
        } else {
            self
        }
    }
}

impl<E: Into<anyhow::Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self {
            code: ExitCode::FAILURE,
            error: error.into(),
        }
    }
}

/// Reads this process's command line. Err: help, the version or what is wrong has been printed; exit with this.
pub(crate) fn parse() -> Result<CommandLine, ExitCode> {
    CommandLine::try_parse().map_err(|error| {
        // Nobody is left to tell when standard error or output is closed.
        let _ = error.print();
        if error.use_stderr() {
            ExitCode::FAILURE
        } else {
            ExitCode::SUCCESS
        }
    })
}

/// Does what the command line says; the result is the exit status of this process.
pub(crate) fn run(command: CommandLine) -> Result<ExitCode, Failure> {
    let options = command.options;
    crate::log::begin(&options)?;
    tracing::debug!(
        version = env!("CARGO_PKG_VERSION"),
        pid = std::process::id(),
        "called"
    );
    match command.verb {
        Verb::Run(args) => run::run(&options, &args),
        Verb::Exec(args) => exec::run(&options, &args),
        Verb::Create(args) => create::run(&options, &args),
        Verb::Start(args) => start::run(&options, &args),
        Verb::State(args) => state::run(&options, &args),
        Verb::Kill(args) => kill::run(&options, &args),
        Verb::Delete(args) => delete::run(&options, &args),
        Verb::List(args) => list::run(&options, &args),
        Verb::Pause(args) => pause::run(&options, &args),
        Verb::Resume(args) => resume::run(&options, &args),
        Verb::Update(args) => update::run(&options, &args),
        Verb::Ps(args) => ps::run(&options, &args),
        Verb::Events(args) => events::run(&options, &args),
        Verb::Features(args) => features::run(&args),
        Verb::Gc(args) => gc::run(&options, &args),
        Verb::UserNamespace => {
            id_map::hold_user_namespace().context("cannot make a user namespace")?;
            Ok(ExitCode::SUCCESS)
        }
        Verb::Checkpoint(args) => refused::checkpoint("checkpoint", &args),
        Verb::Restore(args) => refused::checkpoint("restore", &args),
        Verb::Spec(args) => spec::run(&args),
        Verb::Check(args) => check::run(&options, &args),
        Verb::Serve(args) => {
            let status = supervise::serve(&options, &args)?;
            Ok(foreground::exit_code(status.unwrap_or(0)))
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn command_line_is_consistent() {
        CommandLine::command().debug_assert();
    }

    #[test]
    fn common_options_may_stand_before_and_behind_the_verb() {
        for words in [
            ["husk", "--root", "/r", "run", "web"],
            ["husk", "run", "--root", "/r", "web"],
        ] {
            let command = CommandLine::try_parse_from(words).unwrap();
            assert_eq!(command.options.root.to_str(), Some("/r"));
        }
    }

    #[test]
    fn options_of_other_runtimes_are_taken_where_those_take_them() {
        let words = [
            "--systemd-cgroup",
            "--rootless",
            "auto",
            "--criu",
            "/x",
            "list",
        ];
        assert!(CommandLine::try_parse_from(["husk"].iter().chain(&words)).is_ok());
        assert!(CommandLine::try_parse_from(["husk", "--rootless", "true", "list"]).is_err());
        assert!(CommandLine::try_parse_from(["husk", "spec", "--rootless"]).is_ok());
    }

    #[test]
    fn help_lists_every_verb_but_the_hidden_one() {
        let command = CommandLine::command();
        for verb in command.get_subcommands() {
            let about = verb.get_about().unwrap();
            let line = format!("  {:<7} {about}\n", verb.get_name());
            assert_eq!(HELP.contains(&line), !verb.is_hide_set(), "{line}");
        }
    }
}
