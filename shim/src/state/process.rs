//! Processes of this host by more than their pid, which is used again.

use std::fmt;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::str::FromStr;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, PidfdFlags};
use serde::{Deserialize, Serialize};

/// A process named so that a later one with the same pid is not taken for it.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub(crate) struct ProcessRef {
    /// Process id on the host.
    pub(crate) pid: i32,
    /// Clock ticks after boot, field 22 of `/proc/PID/stat`.
    pub(crate) start_time: u64,
}

impl ProcessRef {
    /// No process at all.
    pub(super) const NONE: Self = Self {
        pid: 0,
        start_time: 0,
    };

    /// Names this process.
    pub(crate) fn this() -> io::Result<Self> {
        let pid = i32::try_from(std::process::id()).map_err(io::Error::other)?;
        Self::of(pid).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// Names the process that has `pid` now; None when there is none.
    pub(crate) fn of(pid: i32) -> Option<Self> {
        let stat = fs::read(format!("/proc/{pid}/stat")).ok()?;
        Some(Self {
            pid,
            start_time: start_time(&stat)?,
        })
    }

    /// A pidfd of the process while it is alive; None once it is gone, whoever has its pid now.
    pub(crate) fn open(self) -> Option<OwnedFd> {
        let pid = Pid::from_raw(self.pid)?;
        let pidfd = rustix::process::pidfd_open(pid, PidfdFlags::empty()).ok()?;
        // Compared after the open: the pidfd then cannot be another's.
        let same = Self::of(self.pid) == Some(self);
        // Readable when it has exited, also while its parent has not waited for it.
        let mut exited = [PollFd::new(&pidfd, PollFlags::IN)];
        let dead = rustix::event::poll(&mut exited, Some(&Timespec::default())) == Ok(1);
        (same && !dead).then_some(pidfd)
    }
}

/// As a word of a command line: `PID:START_TIME`.
impl fmt::Display for ProcessRef {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}:{}", self.pid, self.start_time)
    }
}

impl FromStr for ProcessRef {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (pid, start_time) = text.split_once(':').unwrap_or_default();
        match (pid.parse(), start_time.parse()) {
            (Ok(pid), Ok(start_time)) => Ok(Self { pid, start_time }),
            _ => Err("it is not PID:START_TIME"),
        }
    }
}

/// Field 22 of a `/proc/PID/stat` line. The process chooses the name before it: spaces, parentheses
/// and bytes that are no text may be in it.
fn start_time(stat: &[u8]) -> Option<u64> {
    let name_end = stat.iter().rposition(|byte| *byte == b')')?;
    // The first field after the name is number 3.
    str::from_utf8(&stat[name_end + 1..])
        .ok()?
        .split_ascii_whitespace()
        .nth(22 - 3)?
        .parse()
        .ok()
}

/// Whatever name the bytes give a process, its start is told by the fields after the name.
#[cfg(fuzzing)]
pub(crate) fn read_stat(bytes: &[u8]) {
    start_time(bytes);
    let (number, name) = bytes.split_at(bytes.len().min(8));
    let mut number_bytes = [0; 8];
    number_bytes[..number.len()].copy_from_slice(number);
    let started = u64::from_le_bytes(number_bytes);
    let head = [
        b"7 (",
        name,
        b") S 1 7 7 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 ",
    ]
    .concat();
    let line = [&head[..], format!("{started} 4096 1\n").as_bytes()].concat();
    assert_eq!(start_time(&line), Some(started));
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt as _;
    use std::process::Command;

    use super::*;

    #[test]
    fn a_later_process_with_the_same_pid_is_another() {
        let this = ProcessRef::this().unwrap();
        assert!(this.open().is_some());
        let earlier = ProcessRef {
            start_time: this.start_time - 1,
            ..this
        };
        assert!(earlier.open().is_none());
        assert!(ProcessRef::NONE.open().is_none());
    }

    #[test]
    fn a_process_is_found_whatever_it_calls_itself() {
        // A VMM that its guest has taken over may name its thread as it likes.
        for name in [&b"\xff"[..], b"a) S 1 1 1 0", b"( )\n"] {
            let folder = tempfile::tempdir().unwrap();
            let program = folder.path().join(OsStr::from_bytes(name));
            fs::copy("/bin/sleep", &program).unwrap();
            let mut child = Command::new(program).arg("1000").spawn().unwrap();
            let process = ProcessRef::of(i32::try_from(child.id()).unwrap());
            let pidfd = process.and_then(ProcessRef::open);
            child.kill().unwrap();
            child.wait().unwrap();
            assert!(pidfd.is_some(), "{}", name.escape_ascii());
        }
    }

    #[test]
    fn a_process_is_a_word() {
        let this = ProcessRef::this().unwrap();
        assert_eq!(this.to_string().parse(), Ok(this));
        for bad in ["", "1", "1:", ":1", "1:x"] {
            assert!(bad.parse::<ProcessRef>().is_err(), "{bad}");
        }
    }
}
