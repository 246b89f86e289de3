//! The outside's ends of a process's streams, by the names the Task API gives them.
//!
//! - A path is a FIFO. Its reader or writer may come later, go and come back (containerd restarts), so an output FIFO is held open
//!   for reading too, and an input FIFO for writing until the caller closes the input.
//! - `fd://PID:START/N` is descriptor N of the process PID that began at START (field 22 of `/proc/PID/stat`), which lends it to the supervisor
//!   (`pidfd_getfd`): the stream then goes on when that process ends, and nothing is between it and the guest but the supervisor.
//! - Empty is no stream. Other schemes are refused.

use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd, RawFd};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{FileType, Mode, OFlags};
use rustix::process::PidfdGetfdFlags;
use tokio::io::Interest;

use super::end::{Stored, has_hung_up};
use super::{Console, End, Screen, Stdio};
use crate::polled;
use crate::state::ProcessRef;
use crate::storage::{Storage, StorageError};

/// The outside of one process.
#[derive(Debug, Default)]
pub(crate) struct Outside {
    terminal: bool,
    pub(super) stdin: Option<End>,
    pub(super) stdout: Option<End>,
    pub(super) stderr: Option<End>,
    pub(super) keeper: Option<Keeper>,
    pub(super) lender: Option<Lender>,
    pub(super) console: Option<Console>,
    pub(super) screen: Option<Screen>,
    storage: Storage,
}

/// A FIFO's writing end, held so that its reader gets no end-of-file.
#[derive(Debug)]
pub(super) struct Keeper(#[expect(dead_code, reason = "held, not used")] OwnedFd);

/// The process whose descriptors are in use.
#[derive(Debug)]
pub(crate) struct Lender(OwnedFd);

/// Why an outside end cannot be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OutsideError {
    #[error("the stream {0:?} is not supported: a FIFO's path or fd://PID:START/N is")]
    Scheme(String),
    #[error("cannot open the streams")]
    Storage(#[from] StorageError),
    #[error("cannot open the stream {name:?}")]
    Open {
        name: String,
        #[source]
        source: io::Error,
    },
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Direction {
    Input,
    Output,
}

/// A stream's name, understood (pure).
#[derive(Debug, PartialEq, Eq)]
enum Name<'a> {
    None,
    Fifo(&'a str),
    Lent { process: ProcessRef, fd: i32 },
}

impl Lender {
    /// The process, if it is alive.
    pub(crate) fn of(process: ProcessRef) -> Option<Self> {
        process.open().map(Self)
    }

    /// Takes its descriptor `fd`.
    pub(crate) fn take(&self, fd: RawFd) -> io::Result<OwnedFd> {
        Ok(rustix::process::pidfd_getfd(
            &self.0,
            fd,
            PidfdGetfdFlags::empty(),
        )?)
    }

    /// Whether it is alive still.
    pub(crate) fn is_alive(&self) -> bool {
        let mut fds = [PollFd::new(&self.0, PollFlags::IN)];
        let now = Timespec::default();
        matches!(rustix::event::poll(&mut fds, Some(&now)), Ok(0))
    }

    /// The same process, to wait for its end by.
    pub(crate) fn try_clone(&self) -> io::Result<Self> {
        Ok(Self(self.0.try_clone()?))
    }

    /// Waits for its end.
    pub(crate) async fn gone(self) -> io::Result<()> {
        // Readable is dead.
        polled::watch(self.0)?.readable().await.map(drop)
    }
}

impl Outside {
    /// Opens what `stdio` names.
    pub(crate) async fn open(storage: &Storage, stdio: &Stdio) -> Result<Self, OutsideError> {
        if [&stdio.stdin, &stdio.stdout, &stdio.stderr]
            .iter()
            .all(|name| name.is_empty())
        {
            return Self::open_now(storage.clone(), stdio);
        }
        let (stdio, for_files) = (stdio.clone(), storage.clone());
        let opened = move || Self::open_now(for_files, &stdio);
        storage.run("a stream", opened).await?
    }

    fn open_now(storage: Storage, stdio: &Stdio) -> Result<Self, OutsideError> {
        let mut outside = Self {
            terminal: stdio.terminal,
            storage,
            ..Self::default()
        };
        outside.stdin = outside.open_one(&stdio.stdin, Direction::Input)?;
        outside.stdout = outside.open_one(&stdio.stdout, Direction::Output)?;
        if !stdio.terminal {
            outside.stderr = outside.open_one(&stdio.stderr, Direction::Output)?;
        }
        Ok(outside)
    }

    fn open_one(&mut self, name: &str, direction: Direction) -> Result<Option<End>, OutsideError> {
        let failed = |source| OutsideError::Open {
            name: name.to_owned(),
            source,
        };
        match parse(name)? {
            Name::None => Ok(None),
            Name::Fifo(path) => self.fifo(path, direction).map(Some).map_err(failed),
            Name::Lent { process, fd } => {
                self.lent(process, fd, direction).map(Some).map_err(failed)
            }
        }
    }

    fn fifo(&mut self, path: &str, direction: Direction) -> io::Result<End> {
        let open = |access| rustix::fs::open(path, access | ALWAYS, Mode::empty());
        let fd = match direction {
            Direction::Input => open(OFlags::RDONLY)?,
            Direction::Output => open(OFlags::RDWR)?,
        };
        let kind = FileType::from_raw_mode(rustix::fs::fstat(&fd)?.st_mode);
        if kind != FileType::Fifo {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "it is not a FIFO",
            ));
        }
        if direction == Direction::Input {
            self.keeper = Some(Keeper(open(OFlags::WRONLY)?));
        }
        End::polled(fd, interest(direction))
    }

    fn lent(&mut self, process: ProcessRef, fd: i32, direction: Direction) -> io::Result<End> {
        let lender = Lender::of(process).ok_or(io::ErrorKind::NotFound)?;
        let fd = lender.take(fd)?;
        if self.terminal && direction == Direction::Input {
            self.console = Console::adopt(&fd)?;
        }
        if self.terminal && direction == Direction::Output {
            self.screen = Some(Screen::of(&fd)?);
        }
        let end = self.adopt(fd, direction)?;
        self.lender = Some(lender);
        Ok(end)
    }

    /// Makes an end of another process's descriptor.
    fn adopt(&self, fd: OwnedFd, direction: Direction) -> io::Result<End> {
        let stat = rustix::fs::fstat(&fd)?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Socket => End::socket(fd),
            FileType::Fifo => {
                let own = reopen(&fd, direction)?;
                // A FIFO opened anew after its last writer went would wait for the next one.
                if direction == Direction::Input && has_hung_up(&fd) {
                    return Ok(End::Ready(own.into()));
                }
                End::polled(own, interest(direction))
            }
            FileType::CharacterDevice if rustix::termios::isatty(&fd) => {
                End::polled(reopen(&fd, direction)?, interest(direction))
            }
            FileType::CharacterDevice if rustix::fs::major(stat.st_rdev) == MEMORY_MAJOR => {
                Ok(End::Ready(fd.into()))
            }
            // Its offset is shared with whoever else writes to it, so it is used as it is.
            _ => Ok(End::Stored(Stored::new(fd.into(), self.storage.clone()))),
        }
    }
}

/// Of `/dev/null`, `zero`, `full`, `random` and `urandom`.
const MEMORY_MAJOR: u32 = 1;

/// Never waits for the other side of a FIFO, never makes a terminal the supervisor's, is not inherited.
const ALWAYS: OFlags = OFlags::NONBLOCK
    .union(OFlags::NOCTTY)
    .union(OFlags::CLOEXEC);

fn interest(direction: Direction) -> Interest {
    match direction {
        Direction::Input => Interest::READABLE,
        Direction::Output => Interest::WRITABLE,
    }
}

/// Another open file description of the same thing, non-blocking.
fn reopen(fd: &OwnedFd, direction: Direction) -> io::Result<OwnedFd> {
    let access = match direction {
        Direction::Input => OFlags::RDONLY,
        Direction::Output => OFlags::WRONLY,
    };
    let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
    match rustix::fs::open(path, access | ALWAYS, Mode::empty()) {
        Ok(own) => Ok(own),
        // A FIFO whose last reader went, or a device that cannot be opened twice: the shared one must do.
        Err(_) => {
            let shared = fd.try_clone()?;
            rustix::io::ioctl_fionbio(shared.as_fd(), true)?;
            Ok(shared)
        }
    }
}

/// The name of descriptor `fd` of `process`, for [`Stdio`].
pub(crate) fn lent_name(process: ProcessRef, fd: i32) -> String {
    format!("fd://{process}/{fd}")
}

fn parse(name: &str) -> Result<Name<'_>, OutsideError> {
    let unsupported = || OutsideError::Scheme(name.to_owned());
    if name.is_empty() {
        return Ok(Name::None);
    }
    if name.starts_with('/') {
        return Ok(Name::Fifo(name));
    }
    if let Some(path) = name.strip_prefix("fifo://") {
        return Ok(Name::Fifo(path));
    }
    let lent = name.strip_prefix("fd://").ok_or_else(unsupported)?;
    let (process, fd) = lent.split_once('/').ok_or_else(unsupported)?;
    match (process.parse::<ProcessRef>(), fd.parse()) {
        (Ok(process), Ok(fd @ 0..)) if process.pid > 0 => Ok(Name::Lent { process, fd }),
        _ => Err(unsupported()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_understood() {
        assert_eq!(parse("").unwrap(), Name::None);
        assert_eq!(parse("/run/in").unwrap(), Name::Fifo("/run/in"));
        let process = ProcessRef {
            pid: 12,
            start_time: 345,
        };
        let lent = Name::Lent { process, fd: 0 };
        assert_eq!(parse(&lent_name(process, 0)).unwrap(), lent);
        for bad in [
            "file:///x",
            "binary:///x",
            "fd://0:5/1",
            "fd://-1:5/1",
            "fd://1:5/-1",
            "fd://1:/1",
            "fd://1/1",
            "fd://1:5",
            "x",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[tokio::test]
    async fn a_missing_fifo_is_named() {
        let stdio = Stdio {
            stdout: "/nowhere/out".into(),
            ..Stdio::default()
        };
        let error = Outside::open(&Storage::default(), &stdio)
            .await
            .unwrap_err();
        assert_eq!(error.to_string(), "cannot open the stream \"/nowhere/out\"");
    }
}
