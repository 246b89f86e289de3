//! The command line: what may be said, and which verb answers. One file per verb.

mod check;
mod create;
mod delete;
mod exec;
mod kill;
mod list;
mod run;
mod spec;
mod start;
mod state;

/// What `run` and `create` look at before anything is started.
mod bundle;
/// A terminal for a process in the background.
mod console;
/// The end of a container's supervisor.
mod ending;
/// A process in the foreground.
mod foreground;
/// What is known of a container from disk.
mod record;
/// What a dead supervisor left behind.
mod remains;
/// A process that stands for an exec in the background.
mod session;
/// The signals to pass on.
mod signals;
/// One process, through its supervisor.
mod tasks;

use std::process::ExitCode;
use std::sync::LazyLock;

use clap::{Parser, Subcommand};

use crate::config::Options;
use crate::supervise::{self, ServeArgs};

/// The help of `husk` itself: verbs by what one wants to do.
const HELP: &str = "\
{about}

{usage-heading} {usage}

Run containers:
  run     Run a container in the foreground and exit with its status
  exec    Run another command in a running container

Step by step, as an engine does:
  create  Create a container that waits for its start
  start   Start a created container
  kill    Send a signal to a container's first process
  delete  Remove a stopped container

See what there is:
  state   Print the state of a container as JSON
  list    List the containers

Set up:
  spec    Write a config.json that runs a shell in the bundle's rootfs
  check   Check that this host can run guests and that everything is installed

Options:
{options}

Examples:
  husk check                         is this host fit, is everything installed?
  husk spec --bundle web             write web/config.json for web/rootfs
  husk run --bundle web web-1        run it; the exit status is the container's
  husk exec --tty web-1 sh           a shell beside it

husk COMMAND --help says more about a command.
";

/// The version of the OCI runtime specification that configurations are read by.
const SPEC_VERSION: &str = "1.2.1";

static VERSION: LazyLock<String> = LazyLock::new(|| {
    format!(
        "version {}\ncommit: {}\nspec: {SPEC_VERSION}",
        env!("CARGO_PKG_VERSION"),
        option_env!("HUSK_COMMIT").unwrap_or("unknown"),
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
    List(list::ListArgs),
    Spec(spec::SpecArgs),
    Check(check::CheckArgs),
    /// Be the supervisor of one sandbox
    #[command(hide = true)]
    Serve(ServeArgs),
}

/// A command that did not do what it was told.
#[derive(Debug)]
pub(crate) struct Failure {
    /// The exit status of this process.
    pub(crate) code: ExitCode,
    /// Why.
    pub(crate) error: anyhow::Error,
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
    match command.verb {
        Verb::Run(args) => run::run(&options, &args),
        Verb::Exec(args) => exec::run(&options, &args),
        Verb::Create(args) => create::run(&options, &args),
        Verb::Start(args) => start::run(&options, &args),
        Verb::State(args) => state::run(&options, &args),
        Verb::Kill(args) => kill::run(&options, &args),
        Verb::Delete(args) => delete::run(&options, &args),
        Verb::List(args) => list::run(&options, &args),
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
    fn help_lists_every_verb_but_the_hidden_one() {
        let command = CommandLine::command();
        for verb in command.get_subcommands() {
            let about = verb.get_about().unwrap();
            let line = format!("  {:<8}{about}\n", verb.get_name());
            assert_eq!(HELP.contains(&line), !verb.is_hide_set(), "{line}");
        }
    }
}
