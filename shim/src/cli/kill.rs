//! `husk kill`: a signal to a container's init process, or to all its processes.

use std::process::ExitCode;
use std::str::FromStr as _;

use nix::libc::{self, c_int};
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
    let number = real_time_number(&name);
    if let Some(number) = number.or_else(|| Signal::from_str(&name).ok().map(|it| it as i32)) {
        return Ok(number.unsigned_abs());
    }
    Err(format!("unknown signal {text:?}"))
}

/// Those without a name of their own, as crun takes them: `SIGRTMIN+3` stops systemd.
fn real_time_number(name: &str) -> Option<c_int> {
    let (first, last) = (libc::SIGRTMIN(), libc::SIGRTMAX());
    let number = match name.strip_prefix("SIGRTM")?.split_at_checked(2)? {
        ("IN", "") => first,
        ("AX", "") => last,
        ("IN", offset) => first.checked_add(offset.strip_prefix('+')?.parse().ok()?)?,
        ("AX", offset) => last.checked_sub(offset.strip_prefix('-')?.parse().ok()?)?,
        _ => return None,
    };
    (first..=last).contains(&number).then_some(number)
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
        for (text, number) in [
            ("RTMIN", 34),
            ("sigrtmin+3", 37),
            ("RTMAX", 64),
            ("SIGRTMAX-1", 63),
        ] {
            assert_eq!(signal_number(text), Ok(number), "{text}");
        }
        for text in [
            "65", "-1", "SIGNONE", "", "RTMIN+31", "RTMIN-1", "RTMAX-31", "RTMIN+", "RTM",
        ] {
            assert!(signal_number(text).is_err(), "{text}");
        }
    }
}
