//! Whoever waits for a service to be ready, as systemd does for one of `Type=notify`, is told when the container's
//! program says so.
//!
//! ```text
//!   NOTIFY_SOCKET is set: create gives the container a socket of its own
//!       start, run --detach: started ─► the program is ready, or has ended ─► READY=1, MAINPID ─► heard ─► return
//!       run: the same beside the container's life, and MAINPID is this process
//! ```
//!
//! A program that is never ready, and does not end, is waited for without end, as by runc; a signal
//! ends the wait. Ways to fail: the caller's socket is not there, which costs a warning.

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
use rustix::io::retry_on_intr;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use rustix::pipe::PipeFlags;
use tokio::sync::oneshot;

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
    block_on(caller.tell_of_started(options, id))
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
            Ok(()) => drop(caller.send_apart(std::process::id())),
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

    /// Waits until the program of container `id`, which has been started, is ready, and says so. One
    /// that cannot be asked any more has ended already, which does not make its start a failure.
    async fn tell_of_started(&self, options: &Options, id: &str) -> Result<(), Failure> {
        let mut signals = Signals::catch().context("cannot catch signals")?;
        let started = async {
            let task = Task::connect(options, id).await?;
            let pid = record::state(options, id)?.pid;
            Ok::<_, anyhow::Error>((task, pid.unsigned_abs()))
        };
        match started.await {
            Ok((task, pid)) => unless_ended(&mut signals, self.tell(&task, pid)).await,
            Err(error) => {
                tracing::debug!("it is not going to be ready: {error:#}");
                Ok(())
            }
        }
    }

    /// A container that has ended, or that was made without a socket, has nothing to say.
    async fn tell(&self, task: &Task, pid: u32) {
        match task.ready().await {
            // Without an answer the thread has ended, and has nothing left to do either.
            Ok(()) => drop(self.send_apart(pid).await),
            Err(error) => tracing::debug!("it is not going to be ready: {error}"),
        }
    }

    /// On a thread of its own, whose end is told: a receiver that does not read stops it so long.
    fn send_apart(&self, pid: u32) -> oneshot::Receiver<()> {
        let (ended, end) = oneshot::channel();
        let caller = self.clone();
        let sending = move || {
            caller.send(pid);
            if ended.send(()).is_err() {
                tracing::debug!("who waited for the receiver has given up");
            }
        };
        if let Err(error) = thread::Builder::new().spawn(sending) {
            self.unheard(&error);
        }
        end
    }

    fn send(&self, pid: u32) {
        if let Err(error) = self.try_send(pid) {
            self.unheard(&error);
        }
    }

    fn unheard(&self, error: &io::Error) {
        let socket = self.0.display();
        tracing::warn!("cannot tell {socket} that the container is ready: {error}");
    }

    /// A container that has ended meanwhile has no pid.
    fn try_send(&self, pid: u32) -> io::Result<()> {
        let socket = UnixDatagram::unbound()?;
        socket.connect_addr(&self.address()?)?;
        socket.send(b"READY=1\n")?;
        if pid != 0 {
            socket.send(format!("MAINPID={pid}\n").as_bytes())?;
        }
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
    let mut closed = [PollFd::new(&read, PollFlags::IN)];
    if retry_on_intr(|| poll(&mut closed, Some(&deadline)))? == 0 {
        tracing::debug!("who waits for the container has not read all in time");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use clap::Parser as _;

    use super::*;
    use crate::cli::CommandLine;

    fn bound(dir: &Path) -> (Caller, UnixDatagram) {
        let path = dir.join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        (Caller(path.into()), socket)
    }

    fn received(socket: &UnixDatagram) -> String {
        let mut bytes = [0; 64];
        let length = socket.recv(&mut bytes).unwrap();
        String::from_utf8_lossy(&bytes[..length]).into_owned()
    }

    #[tokio::test]
    async fn a_receiver_that_does_not_read_leaves_its_caller_free_to_go() {
        let dir = tempfile::tempdir().unwrap();
        let (caller, socket) = bound(dir.path());
        let other = UnixDatagram::unbound().unwrap();
        other.connect_addr(&caller.address().unwrap()).unwrap();
        other.set_nonblocking(true).unwrap();
        let mut count = 0;
        while other.send(b"X").is_ok() {
            count += 1;
        }
        let mut heard = caller.send_apart(7);
        assert_eq!(heard.try_recv(), Err(oneshot::error::TryRecvError::Empty));
        for _ in 0..count {
            assert_eq!(received(&socket), "X");
        }
        assert_eq!(received(&socket), "READY=1\n");
        assert_eq!(received(&socket), "MAINPID=7\n");
        assert_eq!(received(&socket), "BARRIER=1");
        assert_eq!(heard.await, Ok(()));
    }

    #[tokio::test]
    async fn a_pid_is_told_only_where_there_is_one() {
        let dir = tempfile::tempdir().unwrap();
        let (caller, socket) = bound(dir.path());
        let heard = caller.send_apart(0);
        assert_eq!(received(&socket), "READY=1\n");
        assert_eq!(received(&socket), "BARRIER=1");
        assert_eq!(heard.await, Ok(()));
    }

    #[tokio::test]
    async fn a_container_that_has_gone_after_its_start_was_started_all_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let words = ["husk", "--root", dir.path().to_str().unwrap(), "list"];
        let options = CommandLine::try_parse_from(words).unwrap().options;
        let (caller, socket) = bound(dir.path());
        assert!(caller.tell_of_started(&options, "web").await.is_ok());
        socket.set_nonblocking(true).unwrap();
        assert!(socket.recv(&mut [0; 64]).is_err());
    }
}
