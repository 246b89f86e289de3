//! A process in the background that stands for an exec: it lives as long, passes signals on, and ends with its status.
//!
//! ```text
//!   husk exec --detach ── starts ──► husk exec --report-to N (own session; the streams, or the slave of the console)
//!         │                              │  creates, starts, writes the pid file
//!         ◄────────── "started" ─────────┘  lets go of the streams, waits for the exec, deletes it ─► exit status
//!         └─► ends; the other one is a child of whoever adopts orphans
//! ```
//!
//! The `process` object goes by a file in memory. When the exec cannot be started the one in the background says why on the standard error
//! they share, and its status is that of `husk exec`.

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

/// An exec to be run in the background.
#[derive(Debug)]
pub(super) struct Background<'a> {
    /// The container.
    pub(super) id: &'a str,
    /// An OCI `process` object.
    pub(super) process: &'a [u8],
    /// The slave of its terminal, if it has one.
    pub(super) terminal: Option<OwnedFd>,
    pub(super) pid_file: Option<&'a Path>,
}

/// Starts it, and returns when its program has been executed or why not has been said.
pub(super) fn start(options: &Options, exec: Background<'_>) -> anyhow::Result<ExitCode> {
    let (words, report) =
        rustix::pipe::pipe_with(PipeFlags::CLOEXEC).context("cannot make a pipe")?;
    let process = file_of(exec.process).context("cannot pass the process on")?;
    inherited::close_on_exec().context("cannot close descriptors")?;
    for fd in [&report, &process] {
        rustix::io::fcntl_setfd(fd, FdFlags::empty())?;
    }
    let mut command = Command::new("/proc/self/exe");
    // As it is to be seen among the processes of the host.
    command.arg0("husk");
    command.args(options.to_args()?).arg("exec");
    command.args(["--report-to", &report.as_raw_fd().to_string()]);
    command.args(["--process", &path_of(process.as_raw_fd())]);
    if let Some(path) = exec.pid_file {
        command.arg("--pid-file").arg(path);
    }
    command.arg(exec.id);
    if let Some(slave) = exec.terminal {
        command.stdin(slave.try_clone()?).stdout(slave);
    }
    let mut child = command
        .spawn()
        .context("cannot start a process for the exec")?;
    drop((command, report));
    let mut word = String::new();
    BufReader::new(File::from(words))
        .read_line(&mut word)
        .context("cannot hear from the exec's process")?;
    if word.trim() == STARTED {
        return Ok(ExitCode::SUCCESS);
    }
    let status = child.wait().context("cannot wait for the exec's process")?;
    let code = status.code().or(status.signal().map(|signal| 128 + signal));
    let code = code.and_then(|code| u8::try_from(code).ok());
    Ok(code.map_or(ExitCode::FAILURE, ExitCode::from))
}

fn file_of(bytes: &[u8]) -> io::Result<OwnedFd> {
    let fd = rustix::fs::memfd_create("process", MemfdFlags::CLOEXEC)?;
    File::from(fd.try_clone()?).write_all(bytes)?;
    Ok(fd)
}

/// Opened anew, the file is read from its start, and the pipe closed by its owner.
fn path_of(fd: i32) -> String {
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

/// Lets go of the streams, which the supervisor has by now: they are to be closed when the exec closes them.
pub(super) fn let_go() -> io::Result<()> {
    let null = File::options().read(true).write(true).open("/dev/null")?;
    rustix::stdio::dup2_stdin(&null)?;
    rustix::stdio::dup2_stdout(&null)?;
    rustix::stdio::dup2_stderr(&null)?;
    Ok(())
}

/// Says that the program has been executed, to the pipe that came as descriptor `fd`.
pub(super) fn report(fd: i32) -> io::Result<()> {
    let mut pipe = File::options().write(true).open(path_of(fd))?;
    writeln!(pipe, "{STARTED}")
}
