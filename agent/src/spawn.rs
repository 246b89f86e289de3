//! Starts a child, hands it its plan and descriptors, and listens to its reports.
//!
//! The child is this executable again (see [`crate::child`]): what it does to itself on its way must not happen to the agent.

use std::io::{self, Seek, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::plan::Plan;
use crate::report::{self, Failure, Report};
use crate::stdio::ChildStdio;
use crate::watch::watch;

/// The first argument of a child.
pub(crate) const CHILD_ROLE: &str = "child";
const SELF: &str = "/proc/self/exe";

/// Why a process could not be made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SpawnError {
    #[error("cannot start a child")]
    Start(#[source] io::Error),
    #[error("cannot hear from the child")]
    Report(#[source] io::Error),
    #[error("the process was killed while it was set up")]
    Killed,
    #[error("{0}")]
    Failed(Failure),
}

/// A child on its way to its program.
#[derive(Debug)]
pub(crate) struct Spawning {
    status: AsyncFd<OwnedFd>,
}

/// The child's first stage, which makes the process.
#[derive(Debug)]
pub(crate) struct Maker(OwnedFd);

/// A process that was made, and is being set up.
#[derive(Debug)]
pub(crate) struct Spawned {
    pub(crate) pid: i32,
    pub(crate) pidfd: OwnedFd,
}

/// Starts a child. `target` is the pidfd of the process whose namespaces it is to join.
pub(crate) fn spawn(
    plan: &Plan,
    stdio: ChildStdio,
    target: Option<&OwnedFd>,
) -> Result<(Spawning, Maker), SpawnError> {
    start(plan, stdio, target).map_err(SpawnError::Start)
}

fn start(
    plan: &Plan,
    stdio: ChildStdio,
    target: Option<&OwnedFd>,
) -> io::Result<(Spawning, Maker)> {
    let mut memory = std::fs::File::from(memfd_create("plan", MemfdFlags::CLOEXEC)?);
    memory.write_all(&serde_json::to_vec(plan)?)?;
    memory.rewind()?;
    let (ours, theirs) = socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )?;
    rustix::fs::fcntl_setfl(&ours, rustix::fs::OFlags::NONBLOCK)?;
    // Duplicates without close-on-exec live until the child has them.
    let mut passed = vec![rustix::io::dup(&memory)?, rustix::io::dup(&theirs)?];
    if let Some(target) = target {
        passed.push(rustix::io::dup(target)?);
    }
    let end = |end: Option<OwnedFd>| end.map_or_else(Stdio::null, Stdio::from);
    // Watched before there is a child, which could not be told that its agent has failed.
    let status = watch(ours, Interest::READABLE)?;
    // Not waited for here: the reaper waits for everybody.
    let child = Command::new(SELF)
        .arg0("husk-agent")
        .arg(CHILD_ROLE)
        .args(passed.iter().map(|fd| fd.as_raw_fd().to_string()))
        .env_clear()
        .stdin(end(stdio.stdin))
        .stdout(end(stdio.stdout))
        .stderr(end(stdio.stderr))
        .spawn()?;
    let maker = Maker::of(&child);
    // Without a name for it there is no way to end it later: it ends now.
    if maker.is_err() {
        let _ = rustix::process::kill_process(Pid::from_child(&child), Signal::KILL);
    }
    Ok((Spawning { status }, maker?))
}

impl Maker {
    /// To be called before the child can be reaped.
    fn of(child: &Child) -> io::Result<Self> {
        let pidfd = pidfd_open(Pid::from_child(child), PidfdFlags::empty())?;
        Ok(Self(pidfd))
    }

    /// Ends it. A process that it has made, and that it has not released yet, ends with it.
    pub(crate) fn kill(&self) {
        kill(&self.0);
    }
}

fn kill(pidfd: &OwnedFd) {
    // It may have ended by itself.
    let _ = pidfd_send_signal(pidfd, Signal::KILL);
}

impl Spawned {
    /// Ends the process.
    pub(crate) fn kill(&self) {
        kill(&self.pidfd);
    }

    /// Whether the process has ended, reaped or not.
    pub(crate) fn has_ended(&self) -> bool {
        let mut poll = [PollFd::new(&self.pidfd, PollFlags::IN)];
        !matches!(
            rustix::event::poll(&mut poll, Some(&Timespec::default())),
            Ok(0)
        )
    }
}

impl Spawning {
    /// Waits until there is a process, which does not go on before it was reported.
    pub(crate) async fn spawned(&mut self) -> Result<Spawned, SpawnError> {
        match self.next().await? {
            Some((Report::Spawned(pid), Some(pidfd))) => Ok(Spawned { pid, pidfd }),
            Some((Report::Failed(failure), _)) => Err(SpawnError::Failed(failure)),
            Some(_) | None => Err(SpawnError::Killed),
        }
    }

    /// Waits until only the program is missing. With a terminal its master comes.
    pub(crate) async fn ready(&mut self) -> Result<Option<OwnedFd>, SpawnError> {
        let mut terminal = None;
        loop {
            match self.next().await? {
                Some((Report::Terminal, master)) => terminal = master,
                Some((Report::Ready, _)) => return Ok(terminal),
                Some((Report::Failed(failure), _)) => return Err(SpawnError::Failed(failure)),
                Some((Report::Spawned(_), _)) | None => return Err(SpawnError::Killed),
            }
        }
    }

    /// Lets the program begin, and waits until it has.
    pub(crate) async fn go(&mut self) -> Result<(), SpawnError> {
        // Where the process is gone already, its exit status is what there is to say.
        if rustix::io::write(self.status.get_ref(), &[report::GO]).is_err() {
            return Ok(());
        }
        match self.next().await {
            Ok(Some((Report::Failed(failure), _))) => Err(SpawnError::Failed(failure)),
            Ok(_) | Err(_) => Ok(()),
        }
    }

    async fn next(&mut self) -> Result<Option<(Report, Option<OwnedFd>)>, SpawnError> {
        loop {
            let mut ready = self.status.readable().await.map_err(SpawnError::Report)?;
            match ready.try_io(|status| Ok(report::receive(status.get_ref())?)) {
                Ok(received) => return received.map_err(SpawnError::Report),
                Err(_would_block) => {}
            }
        }
    }
}
