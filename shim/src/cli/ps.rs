//! `husk ps`: the processes of a container.
//!
//! A person wants to know what runs in the guest: the table is about the guest's processes, with the numbers of its first pid namespace.
//! What the guest says is for a terminal: it is shown without control characters.
//!
//! An engine looks the numbers up among the processes of its host, where the guest's would be somebody else's: the array names the
//! processes of the host that are the container, its supervisor and its VMM.

use std::fmt::Write as _;
use std::process::ExitCode;

use agent_api::agent::ProcessInfo;
use anyhow::{Context as _, anyhow};
use clap::ValueEnum;

use super::Failure;
use super::calendar::{self, NS_PER_S, S_PER_DAY};
use super::foreground::block_on;
use super::record;
use super::tasks::Task;
use crate::config::Options;
use crate::state::{Status, now_ns};

const HEADER: &str = "UID        PID  PPID  C STIME TTY          TIME CMD\n";

/// List the processes of a container
///
/// The table is that of `ps -ef`. Process ids and users are the guest's; times are UTC. Engines ask for an array; it names the
/// processes on this host that the container is made of.
#[derive(Debug, clap::Args)]
pub(super) struct PsArgs {
    /// How to print them
    #[arg(short, long, value_enum, default_value_t)]
    format: Format,
    /// The container
    id: String,
    /// Options of ps: -ef, which is the default, and no others
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
    let format = format(args)?;
    let state = record::state(options, &args.id)?;
    let stopped = state.status == Status::Stopped;
    match format {
        Format::Table if stopped => print!("{HEADER}"),
        Format::Table => {
            let processes = block_on(processes(options, &args.id))?;
            print!("{}", table(&processes, now_ns()));
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

/// The format may also be said behind the container, where options of `ps` are.
fn format(args: &PsArgs) -> anyhow::Result<Format> {
    let words: Vec<&str> = args.ps_options.iter().map(String::as_str).collect();
    let named = |name| Format::from_str(name, false).map_err(|_| anyhow!("invalid format option"));
    match words[..] {
        [] | ["-ef"] => Ok(args.format),
        ["-f" | "--format", name] => named(name),
        _ => Err(anyhow!(
            "ps {}: the processes are a guest's, shown as by ps -ef only",
            words.join(" ")
        )),
    }
}

fn table(processes: &[ProcessInfo], now_ns: u64) -> String {
    let mut text = HEADER.to_owned();
    for process in processes {
        let started_ns = u64::try_from(process.started_ns).unwrap_or_default();
        let user = match process.uid {
            0 => "root".to_owned(),
            uid => uid.to_string(),
        };
        let terminal = match process.terminal.as_str() {
            "" => "?".to_owned(),
            name => shown(name),
        };
        let command: Vec<String> = process.command.iter().map(|word| shown(word)).collect();
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "{user:<8} {:>5} {:>5} {:>2} {:>5} {terminal:<8} {:>8} {}",
            process.pid,
            process.parent,
            share(process.cpu_ns, now_ns.saturating_sub(started_ns)),
            start(started_ns, now_ns),
            duration(process.cpu_ns / NS_PER_S),
            command.join(" "),
        );
    }
    text
}

fn shown(word: &str) -> String {
    word.replace(char::is_control, "?")
}

/// Per cent of the process's life that it had a CPU, two digits.
fn share(cpu_ns: u64, age_ns: u64) -> u128 {
    let share = u128::from(cpu_ns) * 100 / u128::from(age_ns.max(1));
    share.min(99)
}

/// The time of day, or the day when that is not today's.
fn start(started_ns: u64, now_ns: u64) -> String {
    let started = calendar::Time::of(started_ns);
    let now = calendar::Time::of(now_ns);
    if started.date == now.date {
        format!("{:02}:{:02}", started.hour, started.minute)
    } else {
        let (_, month, day) = started.date;
        format!("{}{day:02}", calendar::month_name(month))
    }
}

fn duration(seconds: u64) -> String {
    let (days, hours) = (seconds / S_PER_DAY, seconds / 3600 % 24);
    let time = format!("{hours:02}:{:02}:{:02}", seconds / 60 % 60, seconds % 60);
    match days {
        0 => time,
        days => format!("{days}-{time}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY_NS: u64 = S_PER_DAY * NS_PER_S;

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
            started_ns: i64::try_from(10 * 60 * 60 * NS_PER_S).unwrap(),
            cpu_ns: 61 * NS_PER_S,
            command: vec!["sleep".into(), "1000".into()],
            ..Default::default()
        };
        assert_eq!(
            table(&[process], 11 * 60 * 60 * NS_PER_S),
            "UID        PID  PPID  C STIME TTY          TIME CMD\n\
             root       173     1  1 10:00 ?        00:01:01 sleep 1000\n"
        );
    }

    #[test]
    fn older_processes_show_their_day() {
        assert_eq!(start(DAY_NS / 2, DAY_NS), "Jan01");
        assert_eq!(duration(S_PER_DAY + 3661), "1-01:01:01");
    }

    #[test]
    fn what_a_guest_says_does_not_reach_the_terminal_as_it_is() {
        let process = ProcessInfo {
            uid: 7,
            terminal: "\u{1b}[2J".into(),
            command: vec!["a\nroot 1".into(), "\u{9b}31m".into()],
            ..Default::default()
        };
        let text = table(&[process], 0);
        assert_eq!(text.lines().count(), 2);
        assert!(
            !text.replace('\n', "").contains(char::is_control),
            "{text:?}"
        );
    }

    #[test]
    fn other_options_of_ps_are_refused() {
        assert_eq!(format(&args(&["-ef"])).unwrap(), Format::Table);
        assert_eq!(format(&args(&["--format", "json"])).unwrap(), Format::Json);
        let error = format(&args(&["-o", "pid"])).unwrap_err().to_string();
        assert!(error.starts_with("ps -o pid: "), "{error}");
    }
}
