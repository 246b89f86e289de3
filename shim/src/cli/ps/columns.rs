//! What of processes is shown, column by column, in the words and the manner of `ps` (pure).

use agent_api::agent::ProcessInfo;

use crate::cli::calendar::{NS_PER_S, S_PER_DAY, Time, month_name};

/// The most characters that a column is padded to. What is longer, as a guest's command may be, is
/// shown whole and moves the rest of its own line; else it would make every other line as long, and
/// the formatter takes no width above 65535.
const WIDTH_MAX: usize = 1024;

/// How a column is laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Left,
    Right,
}

/// What is shown of a process at a moment, nanoseconds since 1970.
type Show = fn(&ProcessInfo, u64) -> String;

/// One of those that can be asked for.
struct Known {
    /// All that it is called in a list.
    names: &'static [&'static str],
    header: &'static str,
    width: usize,
    side: Side,
    show: Show,
}

const fn right(
    names: &'static [&'static str],
    header: &'static str,
    width: usize,
    show: Show,
) -> Known {
    Known {
        names,
        header,
        width,
        side: Side::Right,
        show,
    }
}

const fn left(
    names: &'static [&'static str],
    header: &'static str,
    width: usize,
    show: Show,
) -> Known {
    Known {
        names,
        header,
        width,
        side: Side::Left,
        show,
    }
}

const KNOWN: [Known; 33] = [
    right(&["pid", "tgid"], "PID", 5, |it, _| it.pid.to_string()),
    right(&["ppid"], "PPID", 5, |it, _| it.parent.to_string()),
    right(&["pgid", "pgrp"], "PGID", 5, |it, _| {
        it.process_group.to_string()
    }),
    right(&["sid"], "SID", 5, |it, _| it.session.to_string()),
    right(&["sess", "session"], "SESS", 5, |it, _| {
        it.session.to_string()
    }),
    left(&["user", "euser", "uname"], "USER", 8, |it, _| name(it.uid)),
    left(&["UID"], "UID", 8, |it, _| name(it.uid)),
    right(&["uid", "euid"], "UID", 5, |it, _| it.uid.to_string()),
    left(&["group", "egroup"], "GROUP", 8, |it, _| name(it.gid)),
    right(&["gid", "egid"], "GID", 5, |it, _| it.gid.to_string()),
    left(&["comm", "ucmd", "ucomm"], "COMMAND", 15, |it, _| {
        shown(&it.name)
    }),
    left(&["args", "command"], "COMMAND", 7, |it, _| arguments(it)),
    left(&["cmd"], "CMD", 3, |it, _| arguments(it)),
    left(&["stat"], "STAT", 4, |it, _| state(it)),
    left(&["s", "state"], "S", 1, |it, _| shown(&it.state)),
    left(&["tty", "tt"], "TT", 8, |it, _| terminal(it)),
    left(&["tname"], "TTY", 8, |it, _| terminal(it)),
    right(&["time", "cputime"], "TIME", 8, |it, _| {
        duration(it.cpu_ns / NS_PER_S)
    }),
    right(&["bsdtime"], "TIME", 6, |it, _| {
        let seconds = it.cpu_ns / NS_PER_S;
        format!("{}:{:02}", seconds / 60, seconds % 60)
    }),
    right(&["etime"], "ELAPSED", 11, |it, now| {
        elapsed(age_ns(it, now) / NS_PER_S)
    }),
    right(&["etimes"], "ELAPSED", 7, |it, now| {
        (age_ns(it, now) / NS_PER_S).to_string()
    }),
    right(&["stime", "start_time"], "STIME", 5, |it, now| {
        start(started_ns(it), now)
    }),
    right(&["bsdstart"], "START", 5, |it, now| {
        start(started_ns(it), now)
    }),
    right(&["start"], "STARTED", 8, |it, now| {
        let time = Time::of(started_ns(it));
        if age_ns(it, now) < S_PER_DAY * NS_PER_S {
            format!("{:02}:{:02}:{:02}", time.hour, time.minute, time.second)
        } else {
            format!("{} {:02}", month_name(time.date.1), time.date.2)
        }
    }),
    right(&["rss", "rssize", "rsz"], "RSS", 5, |it, _| {
        (it.resident_bytes / 1024).to_string()
    }),
    right(&["vsz", "vsize"], "VSZ", 6, |it, _| {
        (it.virtual_bytes / 1024).to_string()
    }),
    right(&["pcpu", "%cpu"], "%CPU", 4, |it, now| {
        tenths(share(it.cpu_ns, age_ns(it, now), 1000))
    }),
    right(&["pmem", "%mem"], "%MEM", 4, |it, _| {
        tenths(it.memory_permille.into())
    }),
    right(&["c"], "C", 2, |it, now| {
        share(it.cpu_ns, age_ns(it, now), 100).min(99).to_string()
    }),
    right(&["nlwp", "thcount"], "NLWP", 4, |it, _| {
        it.threads.to_string()
    }),
    right(&["ni", "nice"], "NI", 3, |it, _| nice(it).to_string()),
    right(&["pri"], "PRI", 3, |it, _| it.priority.to_string()),
    left(&["TTY"], "TTY", 8, |it, _| terminal(it)),
];

/// A column of a table.
#[derive(Clone)]
pub(super) struct Column {
    header: String,
    known: &'static Known,
}

impl Column {
    /// The one that is called so, under its own header.
    pub(super) fn named(name: &str) -> Option<Self> {
        let known = KNOWN.iter().find(|known| known.names.contains(&name))?;
        Some(Self {
            header: known.header.to_owned(),
            known,
        })
    }

    /// The same under another one.
    pub(super) fn under(self, header: &str) -> Self {
        Self {
            header: header.to_owned(),
            ..self
        }
    }
}

/// The table, line by line: columns as wide as what is in them up to [`WIDTH_MAX`], and the last
/// one not padded. The line of headers is left out where all are empty.
pub(super) fn lines(
    columns: &[Column],
    processes: &[ProcessInfo],
    now_ns: u64,
) -> impl Iterator<Item = String> {
    let widths = widths(columns, processes, now_ns);
    let has_headers = columns.iter().any(|column| !column.header.is_empty());
    let headers = has_headers.then(|| line(columns, &widths, |column| column.header.clone()));
    let rows = processes.iter().map(move |process| {
        line(columns, &widths, |column| {
            (column.known.show)(process, now_ns)
        })
    });
    headers.into_iter().chain(rows)
}

fn widths(columns: &[Column], processes: &[ProcessInfo], now_ns: u64) -> Vec<usize> {
    let width = |column: &Column| {
        let cells = processes
            .iter()
            .map(|process| (column.known.show)(process, now_ns).chars().count());
        let widest = cells.max().unwrap_or(0).max(column.header.chars().count());
        widest.max(column.known.width).min(WIDTH_MAX)
    };
    let mut widths: Vec<usize> = columns.iter().map(width).collect();
    if let (Some(last), Some(width)) = (columns.last(), widths.last_mut())
        && last.known.side == Side::Left
    {
        *width = 0;
    }
    widths
}

fn line(columns: &[Column], widths: &[usize], cell: impl Fn(&Column) -> String) -> String {
    let cells = columns.iter().zip(widths).map(|(column, width)| {
        let cell = cell(column);
        match column.known.side {
            Side::Left => format!("{cell:<width$}"),
            Side::Right => format!("{cell:>width$}"),
        }
    });
    let mut line = cells.collect::<Vec<_>>().join(" ");
    line.truncate(line.trim_end().len());
    line.push('\n');
    line
}

/// The guest's own names of users are in its containers' files.
fn name(id: u32) -> String {
    match id {
        0 => "root".to_owned(),
        id => id.to_string(),
    }
}

fn shown(word: &str) -> String {
    word.replace(char::is_control, "?")
}

fn arguments(process: &ProcessInfo) -> String {
    let words: Vec<String> = process.command.iter().map(|word| shown(word)).collect();
    words.join(" ")
}

fn terminal(process: &ProcessInfo) -> String {
    match process.terminal.as_str() {
        "" => "?".to_owned(),
        name => shown(name),
    }
}

fn nice(process: &ProcessInfo) -> i64 {
    i64::from(process.niceness) - 20
}

/// The letter of the state, and what else `ps` says behind it.
fn state(process: &ProcessInfo) -> String {
    let flags = [
        (nice(process) < 0, '<'),
        (nice(process) > 0, 'N'),
        (process.session == process.pid, 's'),
        (process.threads > 1, 'l'),
        (process.foreground, '+'),
    ];
    let flags = flags.iter().filter(|(is, _)| *is).map(|(_, flag)| *flag);
    shown(&process.state).chars().chain(flags).collect()
}

fn started_ns(process: &ProcessInfo) -> u64 {
    u64::try_from(process.started_ns).unwrap_or_default()
}

fn age_ns(process: &ProcessInfo, now_ns: u64) -> u64 {
    now_ns.saturating_sub(started_ns(process))
}

/// How many of `parts` of the process's life it had a CPU.
fn share(cpu_ns: u64, age_ns: u64, parts: u128) -> u128 {
    u128::from(cpu_ns) * parts / u128::from(age_ns.max(1))
}

fn tenths(number: u128) -> String {
    format!("{}.{}", number / 10, number % 10)
}

/// The time of day, or the day when that is not today's.
fn start(started_ns: u64, now_ns: u64) -> String {
    let started = Time::of(started_ns);
    let now = Time::of(now_ns);
    if started.date == now.date {
        format!("{:02}:{:02}", started.hour, started.minute)
    } else {
        let (_, month, day) = started.date;
        format!("{}{day:02}", month_name(month))
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

/// The same without hours that are none.
fn elapsed(seconds: u64) -> String {
    let text = duration(seconds);
    text.strip_prefix("00:").map_or(text.clone(), str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY_NS: u64 = S_PER_DAY * NS_PER_S;

    fn table(columns: &[Column], processes: &[ProcessInfo], now_ns: u64) -> String {
        lines(columns, processes, now_ns).collect()
    }

    fn columns(names: &[&str]) -> Vec<Column> {
        names
            .iter()
            .map(|name| Column::named(name).unwrap())
            .collect()
    }

    #[test]
    fn every_column_is_shown_as_ps_does() {
        let process = ProcessInfo {
            pid: 173,
            parent: 1,
            process_group: 173,
            session: 173,
            uid: 7,
            foreground: true,
            state: "S".into(),
            name: "sleep".into(),
            niceness: 25,
            priority: 14,
            threads: 2,
            resident_bytes: 2048 << 10,
            virtual_bytes: 4096 << 10,
            memory_permille: 12,
            started_ns: i64::try_from(10 * 60 * 60 * NS_PER_S).unwrap(),
            cpu_ns: 361 * NS_PER_S,
            command: vec!["sleep".into(), "1000".into()],
            ..Default::default()
        };
        let now_ns = 11 * 60 * 60 * NS_PER_S;
        for (name, expected) in [
            ("pid", "173"),
            ("ppid", "1"),
            ("pgid", "173"),
            ("user", "7"),
            ("group", "root"),
            ("stat", "SNsl+"),
            ("comm", "sleep"),
            ("args", "sleep 1000"),
            ("tty", "?"),
            ("time", "00:06:01"),
            ("bsdtime", "6:01"),
            ("etime", "01:00:00"),
            ("etimes", "3600"),
            ("start", "10:00:00"),
            ("rss", "2048"),
            ("vsz", "4096"),
            ("%cpu", "10.0"),
            ("%mem", "1.2"),
            ("nlwp", "2"),
            ("ni", "5"),
            ("pri", "14"),
        ] {
            let table = table(&columns(&[name]), std::slice::from_ref(&process), now_ns);
            assert_eq!(table.lines().nth(1).unwrap().trim(), expected, "{name}");
        }
        assert_eq!(elapsed(61), "01:01");
    }

    #[test]
    fn a_long_command_is_shown_whole_and_does_not_lengthen_the_lines_of_others() {
        let long = "x".repeat(70_000);
        let process = |pid, command: &str| ProcessInfo {
            pid,
            command: vec![command.into()],
            ..Default::default()
        };
        let processes = [process(1, &long), process(2, "sh")];
        let text = table(&columns(&["args", "pid"]), &processes, 0);
        let rows: Vec<_> = text.lines().skip(1).collect();
        let padding = " ".repeat(WIDTH_MAX - 2);
        assert_eq!(
            rows,
            [format!("{long}     1"), format!("sh{padding}     2")]
        );
        let text = table(&columns(&["pid", "args"]), &processes, 0);
        let rows: Vec<_> = text.lines().collect();
        let first = format!("    1 {long}");
        assert_eq!(rows, ["  PID COMMAND", &first, "    2 sh"]);
        let headed = columns(&["pid"]).remove(0).under(&long);
        let rows = table(&[headed], &processes, 0);
        assert_eq!(rows.lines().nth(2).unwrap().len(), WIDTH_MAX);
    }

    #[test]
    fn no_name_is_that_of_two_columns() {
        let mut names: Vec<_> = KNOWN.iter().flat_map(|known| known.names).collect();
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count);
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
            name: "\u{1b}c".into(),
            state: "\n".into(),
            terminal: "\u{1b}[2J".into(),
            command: vec!["a\nroot 1".into(), "\u{9b}31m".into()],
            ..Default::default()
        };
        let text = table(&columns(&["tty", "comm", "stat", "args"]), &[process], 0);
        assert_eq!(text.lines().count(), 2);
        assert!(
            !text.replace('\n', "").contains(char::is_control),
            "{text:?}"
        );
    }
}
