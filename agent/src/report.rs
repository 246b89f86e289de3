//! What a child tells the agent on its way, and the one word it waits for.
//!
//! ```text
//! child:  Spawned(pid) + pidfd ── Terminal + fd (with a terminal) ── Ready ──(waits for GO)── execve: the socket closes
//!             └───────────────────┴───────────────┴────────────────────┴──► Failed, and the child ends
//! ```
//!
//! One message is one packet of a `SOCK_SEQPACKET` pair. The socket is close-on-exec, so that its end is the news that the program has
//! begun.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use serde::{Deserialize, Serialize};

/// A message of the child.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Report {
    /// The process exists; its id in the agent's pid namespace. Its pidfd comes with this message.
    Spawned(i32),
    /// The master of its terminal comes with this message.
    Terminal,
    /// Everything is set up but the program.
    Ready,
    Failed(Failure),
}

/// Why there will be no program.
#[derive(Debug, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub(crate) struct Failure {
    pub(crate) kind: FailureKind,
    /// One line for the user.
    pub(crate) message: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum FailureKind {
    /// There is no such program.
    NotFound,
    /// There is, but it cannot be executed.
    NotExecutable,
    /// The container or the process could not be set up.
    SetUp,
}

impl FailureKind {
    /// The exit status that a shell would give.
    pub(crate) fn status(self) -> u8 {
        match self {
            Self::NotFound => 127,
            Self::NotExecutable => 126,
            Self::SetUp => 1,
        }
    }
}

/// What the agent sends for the program to begin.
pub(crate) const GO: u8 = 1;

/// The longest message: a failure quotes paths and names of the specification, cut by [`send`].
pub(crate) const MESSAGE_MAX: usize = 4096;

/// Sends one message, with a descriptor where one belongs to it.
pub(crate) fn send(
    socket: impl AsFd,
    report: &Report,
    fd: Option<BorrowedFd<'_>>,
) -> Result<(), Errno> {
    let mut bytes = serde_json::to_vec(report).map_err(|_| Errno::INVAL)?;
    if bytes.len() > MESSAGE_MAX {
        let cut = Failure {
            kind: FailureKind::SetUp,
            message: "set-up failed with an overlong message".to_owned(),
        };
        bytes = serde_json::to_vec(&Report::Failed(cut)).map_err(|_| Errno::INVAL)?;
    }
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds = fd.map(|fd| [fd]);
    if let Some(fds) = &fds {
        control.push(SendAncillaryMessage::ScmRights(fds));
    }
    sendmsg(
        socket,
        &[IoSlice::new(&bytes)],
        &mut control,
        SendFlags::NOSIGNAL,
    )?;
    Ok(())
}

/// Receives one message; none at the end. A message that cannot be read is `INVAL`.
pub(crate) fn receive(socket: impl AsFd) -> Result<Option<(Report, Option<OwnedFd>)>, Errno> {
    let mut bytes = [0; MESSAGE_MAX];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let got = recvmsg(
        socket,
        &mut [IoSliceMut::new(&mut bytes)],
        &mut control,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    let fd = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    if got.bytes == 0 {
        return Ok(None);
    }
    let report = serde_json::from_slice(&bytes[..got.bytes]).map_err(|_| Errno::INVAL)?;
    Ok(Some((report, fd)))
}
