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
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
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

/// Field 22 of a `/proc/PID/stat` line; the name before it may hold spaces and parentheses.
fn start_time(stat: &str) -> Option<u64> {
    let (_, after_name) = stat.rsplit_once(')')?;
    // The first field after the name is number 3.
    after_name
        .split_ascii_whitespace()
        .nth(22 - 3)?
        .parse()
        .ok()
}

#[cfg(test)]
mod tests {
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
    fn a_process_is_a_word() {
        let this = ProcessRef::this().unwrap();
        assert_eq!(this.to_string().parse(), Ok(this));
        for bad in ["", "1", "1:", ":1", "1:x"] {
            assert!(bad.parse::<ProcessRef>().is_err(), "{bad}");
        }
    }
}
