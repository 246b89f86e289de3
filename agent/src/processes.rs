//! What `ps` says of processes, out of `/proc` (see proc(5)).
//!
//! A container decides how many processes it has and how long their command lines are: both are bounded here. One that ends while it is
//! looked at is left out. Reading a command line looks into the memory of a process, which may take as long as that process likes.

use std::fs::{self, File};
use std::io::{self, Read};
use std::time::SystemTime;

use agent_api::agent::ProcessInfo;
use rustix::param::{clock_ticks_per_second, page_size};
use rustix::time::{ClockId, clock_gettime};

/// More are not listed: the reply must fit into a message of 4 MiB.
const PROCESSES_MAX: usize = 8192;
/// Of one command line, bytes; the rest is cut off.
const COMMAND_MAX: u64 = 4096;
/// Of all command lines together; those after are only the names of their programs.
const COMMANDS_MAX: usize = 2 << 20;

const NS_PER_S: u64 = 1_000_000_000;

/// What of `/proc/PID/stat` is wanted, in its own units.
#[derive(Debug, PartialEq, Eq)]
struct Stat<'s> {
    name: &'s str,
    state: &'s str,
    parent: u32,
    process_group: u32,
    session: u32,
    terminal: u32,
    foreground_group: i64,
    cpu_ticks: u64,
    priority: i64,
    nice: i64,
    threads: u32,
    start_ticks: u64,
    virtual_bytes: u64,
    resident_pages: u64,
}

/// A machine, as far as the figures of its processes are about it.
#[derive(Clone, Copy, Debug)]
struct Machine {
    booted_ns: i64,
    memory_bytes: u64,
}

impl Machine {
    fn look() -> io::Result<Self> {
        let info = rustix::system::sysinfo();
        Ok(Self {
            booted_ns: booted_ns()?,
            memory_bytes: info.totalram.saturating_mul(info.mem_unit.into()),
        })
    }
}

/// The processes in the order given. Fails where the clocks cannot be read.
pub(crate) fn list(pids: &[u32]) -> io::Result<Vec<ProcessInfo>> {
    let machine = Machine::look()?;
    let mut left = COMMANDS_MAX;
    let mut processes = Vec::new();
    for pid in pids.iter().take(PROCESSES_MAX) {
        if let Ok(Some(process)) = look_at(*pid, machine, left) {
            left = left.saturating_sub(process.command.iter().map(String::len).sum());
            processes.push(process);
        }
    }
    Ok(processes)
}

/// When the machine was booted, in nanoseconds since 1970.
fn booted_ns() -> io::Result<i64> {
    let now = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_err(io::Error::other)?;
    let up = clock_gettime(ClockId::Boottime);
    let up = std::time::Duration::try_from(up).map_err(io::Error::other)?;
    let since = now.saturating_sub(up).as_nanos();
    i64::try_from(since).map_err(io::Error::other)
}

fn look_at(pid: u32, machine: Machine, left: usize) -> io::Result<Option<ProcessInfo>> {
    let stat = fs::read(format!("/proc/{pid}/stat"))?;
    let stat = String::from_utf8_lossy(&stat);
    let Some(stat) = parse_stat(&stat) else {
        return Ok(None);
    };
    let status = fs::read(format!("/proc/{pid}/status"))?;
    let status = String::from_utf8_lossy(&status);
    let (Some(uid), Some(gid)) = (effective(&status, "Uid:"), effective(&status, "Gid:")) else {
        return Ok(None);
    };
    let mut command = Vec::new();
    if left > 0 {
        File::open(format!("/proc/{pid}/cmdline"))?
            .take(COMMAND_MAX)
            .read_to_end(&mut command)?;
    }
    let started = i64::try_from(ns(stat.start_ticks)).unwrap_or(i64::MAX);
    let resident = stat.resident_pages.saturating_mul(page_size() as u64);
    let permille = resident.saturating_mul(1000) / machine.memory_bytes.max(1);
    let short = |number: i64| u32::try_from(number).unwrap_or_default();
    Ok(Some(ProcessInfo {
        pid,
        parent: stat.parent,
        uid,
        gid,
        process_group: stat.process_group,
        session: stat.session,
        foreground: stat.foreground_group == i64::from(stat.process_group),
        state: stat.state.to_owned(),
        name: stat.name.to_owned(),
        // As `ps` has it from the kernel's, which is the less the more favoured.
        priority: short(39_i64.saturating_sub(stat.priority)),
        niceness: short(stat.nice.saturating_add(20)),
        threads: stat.threads,
        resident_bytes: resident,
        virtual_bytes: stat.virtual_bytes,
        memory_permille: u32::try_from(permille).unwrap_or(u32::MAX),
        started_ns: machine.booted_ns.saturating_add(started),
        cpu_ns: ns(stat.cpu_ticks),
        terminal: terminal_name(stat.terminal),
        command: arguments(&command, stat.name),
        ..ProcessInfo::default()
    }))
}

fn ns(ticks: u64) -> u64 {
    ticks.saturating_mul(NS_PER_S / clock_ticks_per_second().max(1))
}

/// The name is in parentheses and may have any bytes, parentheses among them; the last one ends it.
fn parse_stat(stat: &str) -> Option<Stat<'_>> {
    let (head, tail) = stat.rsplit_once(')')?;
    let (_, name) = head.split_once('(')?;
    // The first of these is field 3, the state.
    let fields: Vec<&str> = tail.split_ascii_whitespace().collect();
    let field = |number: usize| fields.get(number - 3);
    let count = |number| field(number)?.parse::<u64>().ok();
    Some(Stat {
        name,
        state: field(3)?,
        parent: field(4)?.parse().ok()?,
        process_group: field(5)?.parse().ok()?,
        session: field(6)?.parse().ok()?,
        terminal: field(7)?.parse().ok()?,
        foreground_group: field(8)?.parse().ok()?,
        cpu_ticks: count(14)?.saturating_add(count(15)?),
        priority: field(18)?.parse().ok()?,
        nice: field(19)?.parse().ok()?,
        threads: field(20)?.parse().ok()?,
        start_ticks: count(22)?,
        virtual_bytes: count(23)?,
        resident_pages: count(24)?,
    })
}

/// The second of the numbers of a user or a group.
fn effective(status: &str, what: &str) -> Option<u32> {
    let line = status.lines().find_map(|line| line.strip_prefix(what))?;
    line.split_ascii_whitespace().nth(1)?.parse().ok()
}

/// The name below `/dev` of a terminal by its device number; empty where it is none of those that there are.
fn terminal_name(device: u32) -> String {
    let (major, minor) = (device >> 8 & 0xfff, device & 0xff | device >> 12 & 0xfff00);
    match (major, minor) {
        (136, pts) => format!("pts/{pts}"),
        (4, serial @ 64..) => format!("ttyS{}", serial - 64),
        (4, tty) => format!("tty{tty}"),
        (5, 1) => "console".to_owned(),
        _ => String::new(),
    }
}

/// The arguments, which each end with a NUL; the name where there are none.
fn arguments(command: &[u8], name: &str) -> Vec<String> {
    let command = command.strip_suffix(b"\0").unwrap_or(command);
    if command.is_empty() {
        return vec![name.to_owned()];
    }
    command
        .split(|byte| *byte == 0)
        .map(|text| String::from_utf8_lossy(text).into_owned())
        .collect()
}

/// What of `bytes` is taken for a process's files: whatever they say, text of bounded length.
#[cfg(fuzzing)]
pub(crate) fn read_files(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    if let Some(stat) = parse_stat(&text) {
        assert!(text.contains(&format!("({})", stat.name)));
        assert!(ns(stat.cpu_ticks) >= stat.cpu_ticks && ns(stat.start_ticks) >= stat.start_ticks);
        assert!(terminal_name(stat.terminal).len() <= "pts/4294967295".len());
    }
    effective(&text, "Uid:");
    let command = arguments(bytes, "name");
    let most = bytes.iter().filter(|byte| **byte == 0).count() + 1;
    assert!((1..=most).contains(&command.len()));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_may_look_like_the_rest_of_the_line() {
        let stat = "12 (a) S 1 (b) R 3 4 5 34816 6 7 8 9 10 11 100 20 13 14 20 0 1 0 4242 1 2";
        let expected = Stat {
            name: "a) S 1 (b",
            state: "R",
            parent: 3,
            process_group: 4,
            session: 5,
            terminal: 34816,
            foreground_group: 6,
            cpu_ticks: 120,
            priority: 20,
            nice: 0,
            threads: 1,
            start_ticks: 4242,
            virtual_bytes: 1,
            resident_pages: 2,
        };
        assert_eq!(parse_stat(stat), Some(expected));
        assert_eq!(parse_stat("12 (a) S 1"), None);
        assert_eq!(parse_stat(""), None);
    }

    #[test]
    fn terminals_have_the_names_of_their_devices() {
        for (device, name) in [
            (0, ""),
            (0x8800, "pts/0"),
            (0x0010_8801, "pts/257"),
            (0x0440, "ttyS0"),
            (0x0401, "tty1"),
            (0x0501, "console"),
        ] {
            assert_eq!(terminal_name(device), name, "{device:#x}");
        }
    }

    #[test]
    fn a_process_without_arguments_is_its_name() {
        assert_eq!(arguments(b"sh\0-c\0\0", "sh"), ["sh", "-c", ""]);
        assert_eq!(arguments(b"", "kthreadd"), ["kthreadd"]);
        assert_eq!(arguments(b"title without end", "x"), ["title without end"]);
    }

    #[test]
    fn this_process_is_listed_and_one_that_is_gone_is_not() {
        let own = std::process::id();
        let listed = list(&[own, u32::MAX]).unwrap();
        assert_eq!(listed.len(), 1);
        assert_eq!(listed[0].pid, own);
        assert_eq!(listed[0].parent, std::os::unix::process::parent_id());
        assert!(listed[0].resident_bytes > 0 && listed[0].virtual_bytes > listed[0].resident_bytes);
        assert_eq!((listed[0].niceness, listed[0].priority), (20, 19));
        let status = "Name:\ta\nUid:\t1\t2\t3\t4\n";
        assert_eq!(effective(status, "Uid:"), Some(2));
    }
}
