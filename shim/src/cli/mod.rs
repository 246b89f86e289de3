//! The command line: what may be said, and which verb answers. One file per verb.

mod bundle;
mod check;
mod foreground;
mod run;
mod signals;
mod spec;
mod tasks;

use std::process::ExitCode;
use std::sync::LazyLock;

use clap::{Parser, Subcommand};

use crate::config::Options;
use crate::supervise::{self, ServeArgs};

const EXAMPLES: &str = "\
Examples:
  husk check                         is this host fit, is everything installed?
  husk spec --bundle web             write web/config.json for web/rootfs
  husk run --bundle web web-1        run it; the exit status is the container's
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
#[command(name = "husk", version = VERSION.as_str(), after_help = EXAMPLES, disable_help_subcommand = true)]
pub(crate) struct CommandLine {
    #[command(flatten)]
    pub(crate) options: Options,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Run(run::RunArgs),
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
        Verb::Spec(args) => spec::run(&args),
        Verb::Check(args) => check::run(&options, &args),
        Verb::Serve(args) => {
            supervise::serve(&options, &args)?;
            Ok(ExitCode::SUCCESS)
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
    fn serve_is_not_in_the_help() {
        let help = CommandLine::command().render_long_help().to_string();
        assert!(help.contains("check"), "{help}");
        assert!(!help.contains("serve"), "{help}");
    }
}
