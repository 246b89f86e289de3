//! The command line of `husk-vmm` (pure).

use std::ffi::OsString;
use std::path::PathBuf;

/// What `--help` prints.
pub const HELP: &str = "\
usage: husk-vmm --control-fd N --console-fd N [--config FILE]
       husk-vmm --probe | --version | --help
Runs one virtual machine, described by a JSON document in FILE or on standard input.
  --control-fd N  a connected SOCK_SEQPACKET socket: commands in, replies and events out
  --console-fd N  where the log of the guest's kernel and of its first process goes
  --config FILE   the description of the machine
  --probe         print as a JSON line whether KVM is fit on this host
  --version       print the version
  --help          print this
Exit status: 0 powered off, 1 failed, 2 usage, 3 reset or panicked, 4 stopped.
";

/// What the command line asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Invocation {
    /// Print [`HELP`].
    Help,
    /// Print the version.
    Version,
    /// Print what [`crate::probe`] finds.
    Probe,
    /// Run a machine.
    Run(Run),
}

/// The arguments of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    /// Descriptor of the control socket.
    pub control_fd: i32,
    /// Descriptor of the log.
    pub console_fd: i32,
    /// Where the configuration is; None: standard input.
    pub config: Option<PathBuf>,
}

/// What is wrong with a command line.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ArgsError {
    /// No such option.
    #[error("unknown argument {argument:?}")]
    Unknown {
        /// The argument.
        argument: OsString,
    },
    /// An option without its value.
    #[error("{option} needs a value")]
    NoValue {
        /// The option.
        option: &'static str,
    },
    /// A value that is no descriptor beyond the standard three.
    #[error("{option} {value:?} is not the number of a passed descriptor")]
    NotDescriptor {
        /// The option.
        option: &'static str,
        /// Its value.
        value: OsString,
    },
    /// One descriptor for two things.
    #[error("{CONTROL_FD} and {CONSOLE_FD} are both {number}")]
    SameDescriptor {
        /// Its number.
        number: i32,
    },
    /// An option without which there is no machine.
    #[error("{option} is missing")]
    Missing {
        /// The option.
        option: &'static str,
    },
}

const CONTROL_FD: &str = "--control-fd";
const CONSOLE_FD: &str = "--console-fd";
const CONFIG: &str = "--config";

/// Understands the arguments after the program's name.
pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Invocation, ArgsError> {
    let mut arguments = arguments.into_iter();
    let (mut control_fd, mut console_fd, mut config) = (None, None, None);
    while let Some(argument) = arguments.next() {
        match argument.to_str() {
            Some("--help" | "-h") => return Ok(Invocation::Help),
            Some("--probe") => return Ok(Invocation::Probe),
            Some("--version") => return Ok(Invocation::Version),
            Some(CONTROL_FD) => control_fd = Some(descriptor(CONTROL_FD, arguments.next())?),
            Some(CONSOLE_FD) => console_fd = Some(descriptor(CONSOLE_FD, arguments.next())?),
            Some(CONFIG) => {
                let value = arguments
                    .next()
                    .ok_or(ArgsError::NoValue { option: CONFIG })?;
                config = Some(PathBuf::from(value));
            }
            _ => return Err(ArgsError::Unknown { argument }),
        }
    }
    let control_fd = control_fd.ok_or(ArgsError::Missing { option: CONTROL_FD })?;
    let console_fd = console_fd.ok_or(ArgsError::Missing { option: CONSOLE_FD })?;
    if control_fd == console_fd {
        return Err(ArgsError::SameDescriptor { number: control_fd });
    }
    Ok(Invocation::Run(Run {
        control_fd,
        console_fd,
        config,
    }))
}

fn descriptor(option: &'static str, value: Option<OsString>) -> Result<i32, ArgsError> {
    let value = value.ok_or(ArgsError::NoValue { option })?;
    match value.to_str().and_then(|text| text.parse::<i32>().ok()) {
        Some(number) if number > 2 => Ok(number),
        _ => Err(ArgsError::NotDescriptor { option, value }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse_words(line: &str) -> Result<Invocation, ArgsError> {
        parse(line.split_whitespace().map(OsString::from))
    }

    #[test]
    fn descriptors_and_config_are_understood() {
        let run = parse_words("--control-fd 3 --console-fd 4 --config a.json").unwrap();
        let config = Some(PathBuf::from("a.json"));
        assert_eq!(
            run,
            Invocation::Run(Run {
                control_fd: 3,
                console_fd: 4,
                config
            })
        );
    }

    #[test]
    fn wrong_lines_are_refused_with_the_option() {
        for (line, message) in [
            ("--control-fd 3", "--console-fd is missing"),
            ("--control-fd", "--control-fd needs a value"),
            (
                "--control-fd 1",
                "--control-fd \"1\" is not the number of a passed descriptor",
            ),
            (
                "--control-fd x",
                "--control-fd \"x\" is not the number of a passed descriptor",
            ),
            (
                "--control-fd 3 --console-fd 3",
                "--control-fd and --console-fd are both 3",
            ),
            ("--verbose", "unknown argument \"--verbose\""),
        ] {
            assert_eq!(parse_words(line).unwrap_err().to_string(), message);
        }
    }
}
