//! Whoever waits for a service to be ready, as systemd does for one of `Type=notify`, is told when the container's
//! program says so.
//!
//! ```text
//!   NOTIFY_SOCKET is set: create gives the container a socket of its own
//!       start, run --detach: started ─► the program is ready, or has ended ─► READY=1, MAINPID ─► heard ─► return
//!       run: the same beside the container's life, and MAINPID is this process
//! ```
//!
//! A program that is never ready, and does not end, is waited for without end, as by runc. Ways to fail: the caller's
//! socket is not there, which costs a warning.

use std::ffi::OsString;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::AsFd as _;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::thread;

use anyhow::Context as _;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use rustix::pipe::PipeFlags;

use super::foreground::{block_on, unless_ended};
use super::signals::Signals;
use super::tasks::Task;
use super::{Failure, record};
use crate::config::Options;
use crate::deadlines::NOTIFY_HEARD;
use crate::service::CreateOptions;

/// The variable that has the socket's path or, behind `@`, its abstract name.
const VARIABLE: &str = "NOTIFY_SOCKET";

/// What a container is to be made with for the one that this process was started for.
pub(super) fn options() -> CreateOptions {
    CreateOptions {
        stand_in: None,
        notify: Caller::of_this().is_some(),
    }
}

/// Tells the one that this process was started for when container `id` is ready, which has been started in the background.
pub(super) fn when_ready(options: &Options, id: &str) -> Result<(), Failure> {
    let Some(caller) = Caller::of_this() else {
        return Ok(());
    };
    block_on(async {
        let mut signals = Signals::catch().context("cannot catch signals")?;
        let task = Task::connect(options, id).await?;
        let pid = record::state(options, id)?.pid;
        unless_ended(&mut signals, caller.tell(&task, pid.unsigned_abs())).await
    })
}

/// The same in the foreground, beside what this process does; its own pid is told.
pub(super) fn beside(options: &Options, id: &str) {
    let Some(caller) = Caller::of_this() else {
        return;
    };
    let (options, id) = (options.clone(), id.to_owned());
    tokio::spawn(async move {
        let ready = async {
            let task = Task::connect(&options, &id).await?;
            Ok::<_, anyhow::Error>(task.ready().await?)
        };
        match ready.await {
            // Whoever is told may take its time, and this process may end meanwhile.
            Ok(()) => drop(thread::spawn(move || caller.send(std::process::id()))),
            Err(error) => tracing::debug!("it is not going to be ready: {error:#}"),
        }
    });
}

/// Who is to be told.
#[derive(Clone, Debug)]
struct Caller(OsString);

impl Caller {
    /// The one that this process was started for, if there is one.
    fn of_this() -> Option<Self> {
        let socket = std::env::var_os(VARIABLE)?;
        (!socket.is_empty()).then_some(Self(socket))
    }

    /// Waits until the program of a started container is ready, and says so. A container that has ended, or that was
    /// made without a socket, has nothing to say.
    async fn tell(&self, task: &Task, pid: u32) {
        match task.ready().await {
            Ok(()) => self.send(pid),
            Err(error) => tracing::debug!("it is not going to be ready: {error}"),
        }
    }

    fn send(&self, pid: u32) {
        if let Err(error) = self.try_send(pid) {
            let socket = self.0.display();
            tracing::warn!("cannot tell {socket} that the container is ready: {error}");
        }
    }

    fn try_send(&self, pid: u32) -> io::Result<()> {
        let socket = UnixDatagram::unbound()?;
        socket.connect_addr(&self.address()?)?;
        socket.send(b"READY=1\n")?;
        socket.send(format!("MAINPID={pid}\n").as_bytes())?;
        barrier(&socket)
    }

    fn address(&self) -> io::Result<SocketAddr> {
        match self.0.as_bytes().strip_prefix(b"@") {
            Some(name) => SocketAddr::from_abstract_name(name),
            None => SocketAddr::from_pathname(&self.0),
        }
    }
}

/// Waits until what was sent has been read, which is when the pipe that goes with this is closed, see
/// `sd_notify_barrier(3)`: the sender of what is read must not have ended. One that does not know of barriers closes it as well.
fn barrier(socket: &UnixDatagram) -> io::Result<()> {
    let (read, sent) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds = [sent.as_fd()];
    control.push(SendAncillaryMessage::ScmRights(&fds));
    let flags = SendFlags::NOSIGNAL;
    sendmsg(socket, &[IoSlice::new(b"BARRIER=1")], &mut control, flags)?;
    drop(sent);
    let deadline = Timespec::try_from(NOTIFY_HEARD).map_err(io::Error::other)?;
    if poll(&mut [PollFd::new(&read, PollFlags::IN)], Some(&deadline))? == 0 {
        tracing::debug!("who waits for the container has not read all in time");
    }
    Ok(())
}
