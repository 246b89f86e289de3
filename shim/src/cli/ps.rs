//! `husk ps`: the processes of a container.
//!
//! A person wants to know what runs in the guest: the table is about the guest's processes, with the numbers of its first pid namespace.
//! What the guest says is for a terminal: it is shown without control characters.
//!
//! An engine looks the numbers up among the processes of its host, where the guest's would be somebody else's: the array names the
//! processes of the host that are the container, its supervisor and its VMM.

use std::io::{self, BufWriter, Write as _};
use std::process::ExitCode;

use agent_api::agent::ProcessInfo;
use anyhow::Context as _;
use clap::ValueEnum;

use super::Failure;
use super::foreground::block_on;
use super::record;
use super::tasks::Task;
use crate::config::Options;
use crate::state::{Status, now_ns};

mod columns;
mod options;

/// List the processes of a container
///
/// The table is that of `ps -ef`, unless options of ps say otherwise. Process ids and users are the guest's; times are UTC. Engines ask for an array; it names the
/// processes on this host that the container is made of.
#[derive(Debug, clap::Args)]
pub(super) struct PsArgs {
    /// How to print them
    #[arg(short, long, value_enum, default_value_t)]
    format: Format,
    /// The container
    id: String,
    /// Options of ps that choose columns: -e, -f, -j, aux, -o LIST and the like; -ef by default
    #[arg(
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_name = "PS OPTIONS"
    )]
    ps_options: Vec<String>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Format {
    /// A line per process
    #[default]
    Table,
    /// An array of the ids of the container's processes on this host
    Json,
}

/// Prints them.
pub(super) fn run(options: &Options, args: &PsArgs) -> Result<ExitCode, Failure> {
    let (format, words) = split(args);
    let columns = match format {
        Format::Json => Vec::new(),
        Format::Table => options::columns(words)?,
    };
    let state = record::state(options, &args.id)?;
    let stopped = state.status == Status::Stopped;
    match format {
        Format::Table => {
            let processes = if stopped {
                Vec::new()
            } else {
                block_on(processes(options, &args.id))?
            };
            // Line by line: a guest's processes are many, and their commands long.
            let mut out = BufWriter::new(io::stdout().lock());
            for line in columns::lines(&columns, &processes, now_ns()) {
                out.write_all(line.as_bytes())?;
            }
            out.flush()?;
        }
        Format::Json if stopped => println!("[]"),
        Format::Json => println!(
            "{}",
            serde_json::to_string(&record::pids(options, &args.id)?)?
        ),
    }
    Ok(ExitCode::SUCCESS)
}

async fn processes(options: &Options, id: &str) -> Result<Vec<ProcessInfo>, Failure> {
    let task = Task::connect(options, id).await?;
    Ok(task
        .processes()
        .await
        .with_context(|| format!("cannot list the processes of {id}"))?)
}

/// The format, and the options of `ps`. The format may also be said behind the container, where those are, by an option that `ps` has as well.
fn split(args: &PsArgs) -> (Format, &[String]) {
    if let [option, name] = &args.ps_options[..]
        && matches!(option.as_str(), "-f" | "--format")
        && let Ok(format) = Format::from_str(name, false)
    {
        return (format, &[]);
    }
    (args.format, &args.ps_options)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(words: &[&str]) -> PsArgs {
        PsArgs {
            format: Format::Table,
            id: "web".into(),
            ps_options: words.iter().map(|word| (*word).to_owned()).collect(),
        }
    }

    #[test]
    fn table_is_that_of_ps() {
        let process = ProcessInfo {
            pid: 173,
            parent: 1,
            started_ns: 10 * 60 * 60 * 1_000_000_000,
            cpu_ns: 61_000_000_000,
            command: vec!["sleep".into(), "1000".into()],
            ..Default::default()
        };
        let (columns, processes) = (options::columns(&[]).unwrap(), [process]);
        let lines = columns::lines(&columns, &processes, 11 * 60 * 60 * 1_000_000_000);
        assert_eq!(
            lines.collect::<String>(),
            "UID        PID  PPID  C STIME TTY          TIME CMD\n\
             root       173     1  1 10:00 ?        00:01:01 sleep 1000\n"
        );
    }

    #[test]
    fn the_format_may_be_said_behind_the_container() {
        for (words, expected) in [
            (&["-ef"][..], (Format::Table, 1)),
            (&["--format", "json"], (Format::Json, 0)),
            (&["-f", "table"], (Format::Table, 0)),
            (&["--format", "pid"], (Format::Table, 2)),
        ] {
            let args = args(words);
            let (format, options) = split(&args);
            assert_eq!((format, options.len()), expected, "{words:?}");
        }
    }
}
