//! `husk kill`: a signal to a container's init process, or to all its processes.

use std::process::ExitCode;
use std::str::FromStr as _;

use nix::sys::signal::Signal;

use super::Failure;
use super::foreground::block_on;
use super::record::{self, NOT_RUNNING};
use super::signals::SIGNAL_MAX;
use super::tasks::Task;
use crate::config::Options;
use crate::state::Status;

/// The states of a container that a signal can reach.
const ALIVE: [Status; 4] = [
    Status::Creating,
    Status::Created,
    Status::Running,
    Status::Paused,
];

/// Send a signal to a container's first process
#[derive(Debug, clap::Args)]
pub(super) struct KillArgs {
    /// Send it to all processes of the container
    #[arg(short, long)]
    all: bool,
    /// The container
    id: String,
    /// A number or a name: 15, TERM or SIGTERM
    #[arg(default_value = "SIGTERM", value_parser = signal_number)]
    signal: u32,
}

/// Sends it.
pub(super) fn run(options: &Options, args: &KillArgs) -> Result<ExitCode, Failure> {
    let state = record::state(options, &args.id)?;
    // Nobody is left to get it.
    if args.all && state.status == Status::Stopped {
        return Ok(ExitCode::SUCCESS);
    }
    state.expect_one_of(&ALIVE, NOT_RUNNING)?;
    // Asks whether it lives.
    if args.signal == 0 {
        return Ok(ExitCode::SUCCESS);
    }
    let killed = block_on(async {
        let task = Task::connect(options, &args.id).await?;
        Ok(task.kill(args.signal, args.all).await?)
    });
    if let Err(failure) = killed {
        // It may have ended in the meantime.
        record::state(options, &args.id)?.expect_one_of(&ALIVE, NOT_RUNNING)?;
        let error = failure.error;
        return Err(error
            .context(format!("cannot send a signal to {}", args.id))
            .into());
    }
    Ok(ExitCode::SUCCESS)
}

fn signal_number(text: &str) -> Result<u32, String> {
    if let Ok(number) = text.parse() {
        return if number <= u32::from(SIGNAL_MAX) {
            Ok(number)
        } else {
            Err(format!("signals are 0 to {SIGNAL_MAX}"))
        };
    }
    let name = text.to_ascii_uppercase();
    let name = if name.starts_with("SIG") {
        name
    } else {
        format!("SIG{name}")
    };
    let signal = Signal::from_str(&name).map_err(|_| format!("unknown signal {text:?}"))?;
    Ok((signal as i32).unsigned_abs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_are_numbers_and_names() {
        for text in ["9", "KILL", "SIGKILL", "kill"] {
            assert_eq!(signal_number(text), Ok(9), "{text}");
        }
        assert_eq!(signal_number("34"), Ok(34));
        assert_eq!(signal_number("0"), Ok(0));
        for text in ["65", "-1", "SIGNONE", ""] {
            assert!(signal_number(text).is_err(), "{text}");
        }
    }
}
