//! A process in the background that stands for an exec, or for a container in another's sandbox: it lives as long, passes signals on,
//! and ends with its status.
//!
//! ```text
//!   husk exec --detach ── starts ──► husk exec --report-to N (own session; the streams, or the slave of the console)
//!         │                              │  creates, starts, writes the pid file
//!         ◄────────── "started" ─────────┘  lets go of the streams, waits for the exec, deletes it ─► exit status
//!         └─► ends; the other one is a child of whoever adopts orphans
//! ```
//!
//! What does not fit on a command line goes by a file in memory. When the one in the background cannot do its work it says why on
//! the standard error they share, and its status is that of the verb.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::Context as _;
use rustix::fs::MemfdFlags;
use rustix::io::FdFlags;
use rustix::pipe::PipeFlags;

use crate::config::Options;
use crate::inherited;

/// What the one in the background says.
const STARTED: &str = "started";

/// What is to be started.
#[derive(Debug)]
pub(super) struct Background<'a> {
    pub(super) verb: &'static str,
    /// Options behind the verb.
    pub(super) options: Vec<OsString>,
    pub(super) pid_file: Option<&'a Path>,
    /// The container.
    pub(super) id: &'a str,
    /// Descriptors that it needs beside the standard ones.
    pub(super) kept: Vec<OwnedFd>,
    /// The slave of its terminal, if it has one.
    pub(super) terminal: Option<OwnedFd>,
}

/// Starts it, and returns when it says that all is well, or has said why not.
pub(super) fn start(options: &Options, background: Background<'_>) -> anyhow::Result<ExitCode> {
    let (words, report) =
        rustix::pipe::pipe_with(PipeFlags::CLOEXEC).context("cannot make a pipe")?;
    inherited::close_on_exec().context("cannot close descriptors")?;
    for fd in background.kept.iter().chain([&report]) {
        rustix::io::fcntl_setfd(fd, FdFlags::empty())?;
    }
    let mut command = Command::new("/proc/self/exe");
    // As it is to be seen among the processes of the host.
    command.arg0("husk");
    command.args(options.to_args()?).arg(background.verb);
    command.args(["--report-to", &report.as_raw_fd().to_string()]);
    command.args(background.options);
    if let Some(path) = background.pid_file {
        command.arg("--pid-file").arg(path);
    }
    command.arg(background.id);
    if let Some(slave) = background.terminal {
        command.stdin(slave.try_clone()?).stdout(slave);
    }
    let mut child = command
        .spawn()
        .context("cannot start a process in the background")?;
    drop((command, report));
    let mut word = String::new();
    BufReader::new(File::from(words))
        .read_line(&mut word)
        .context("cannot hear from the process in the background")?;
    if word.trim() == STARTED {
        return Ok(ExitCode::SUCCESS);
    }
    let status = child
        .wait()
        .context("cannot wait for the process in the background")?;
    let code = status.code().or(status.signal().map(|signal| 128 + signal));
    let code = code.and_then(|code| u8::try_from(code).ok());
    Ok(code.map_or(ExitCode::FAILURE, ExitCode::from))
}

/// A file in memory.
pub(super) fn file_of(bytes: &[u8]) -> io::Result<OwnedFd> {
    let fd = rustix::fs::memfd_create("husk", MemfdFlags::CLOEXEC)?;
    File::from(fd.try_clone()?).write_all(bytes)?;
    Ok(fd)
}

/// Opened anew, the file is read from its start, and the pipe closed by its owner.
pub(super) fn path_of(fd: i32) -> String {
    format!("/proc/self/fd/{fd}")
}

/// Becomes the process in the background: a session of its own, with the terminal on standard input, if that is one.
pub(super) fn enter(terminal: bool) -> anyhow::Result<()> {
    rustix::process::setsid().context("cannot make a session")?;
    if terminal {
        rustix::process::ioctl_tiocsctty(io::stdin())
            .context("cannot make the terminal that of the session")?;
    }
    Ok(())
}

/// Lets go of the streams, which the supervisor has by now: they are to be closed when the process closes them. Standard error goes to `log`.
pub(super) fn let_go(log: &Path) -> io::Result<()> {
    let null = File::options().read(true).write(true).open("/dev/null")?;
    rustix::stdio::dup2_stdin(&null)?;
    rustix::stdio::dup2_stdout(&null)?;
    let log = File::options().create(true).append(true).open(log)?;
    rustix::stdio::dup2_stderr(&log)?;
    Ok(())
}

/// Says that all is well, to the pipe that came as descriptor `fd`.
pub(super) fn report(fd: i32) -> io::Result<()> {
    let mut pipe = File::options().write(true).open(path_of(fd))?;
    writeln!(pipe, "{STARTED}")
}
