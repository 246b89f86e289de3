//! The connections to the host: the control connection, which the agent dials and then serves, and the port for streams.
//!
//! In a guest they are vsock, whose ports any process of the guest can dial: a stream is taken from the host only, by the context id
//! that the kernel gives the peer. For tests on a host they are Unix sockets in a directory.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::pin::Pin;
use std::task::{Context, Poll};

use agent_api::{PORT_CONTROL, PORT_STREAM};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, VsockAddr, bind, getpeername, listen, socket,
};
use rustix::net::{SocketFlags, accept_with};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::sync::oneshot;
use tokio_vsock::VsockStream;

use crate::watch::watch;

/// The host, from a guest (vsock(7)).
const CID_HOST: u32 = 2;
const CID_ANY: u32 = u32::MAX;
/// Streams that wait to be accepted: a burst of starts.
const BACKLOG: i32 = 128;

/// A connection of the host; it does not block.
pub(crate) type Socket = AsyncFd<OwnedFd>;

/// Why a connection was not taken.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AcceptError {
    #[error("cannot accept a connection")]
    Accept(#[from] io::Error),
    #[error("a process of the guest, context id {0}, has dialled the port of the host's streams")]
    Stranger(u32),
}

/// Takes the connections of streams.
#[derive(Debug)]
pub(crate) struct Listener {
    socket: AsyncFd<OwnedFd>,
    /// Whether peers have context ids, of which one is the host's.
    has_contexts: bool,
}

impl Listener {
    /// The next connection of the host.
    pub(crate) async fn accept(&self) -> Result<Socket, AcceptError> {
        let socket = accept(&self.socket).await?;
        if self.has_contexts {
            check_peer(context_of(&socket)?)?;
        }
        Ok(watch(socket, Interest::READABLE | Interest::WRITABLE)?)
    }
}

async fn accept(listener: &AsyncFd<OwnedFd>) -> io::Result<OwnedFd> {
    loop {
        let mut ready = listener.readable().await?;
        let accepted = ready.try_io(|listener| {
            Ok(accept_with(
                listener.get_ref(),
                SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
            )?)
        });
        if let Ok(socket) = accepted {
            return socket;
        }
    }
}

fn context_of(socket: &OwnedFd) -> io::Result<u32> {
    Ok(getpeername::<VsockAddr>(socket.as_raw_fd())?.cid())
}

fn check_peer(context: u32) -> Result<(), AcceptError> {
    match context {
        CID_HOST => Ok(()),
        stranger => Err(AcceptError::Stranger(stranger)),
    }
}

/// Listens for streams on the guest's port.
pub(crate) fn listen_vsock() -> io::Result<Listener> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let listener = socket(AddressFamily::Vsock, SockType::Stream, flags, None)?;
    bind(listener.as_raw_fd(), &VsockAddr::new(CID_ANY, PORT_STREAM))?;
    listen(&listener, Backlog::new(BACKLOG)?)?;
    Ok(Listener {
        socket: watch(listener, Interest::READABLE)?,
        has_contexts: true,
    })
}

/// Dials the host: the word that this guest is ready.
pub(crate) async fn dial_vsock() -> io::Result<VsockStream> {
    VsockStream::connect(VsockAddr::new(CID_HOST, PORT_CONTROL)).await
}

/// Listens for streams on a Unix socket.
pub(crate) fn listen_unix(path: &Path) -> io::Result<Listener> {
    let listener = std::os::unix::net::UnixListener::bind(path)?;
    listener.set_nonblocking(true)?;
    Ok(Listener {
        socket: watch(listener.into(), Interest::READABLE)?,
        has_contexts: false,
    })
}

/// A connection that tells when it has ended.
#[derive(Debug)]
pub(crate) struct Watched<S> {
    stream: S,
    ended: Option<oneshot::Sender<()>>,
}

impl<S> Watched<S> {
    /// The receiver completes when the other side has closed the connection, or it has failed.
    pub(crate) fn new(stream: S) -> (Self, oneshot::Receiver<()>) {
        let (ended, end) = oneshot::channel();
        (
            Self {
                stream,
                ended: Some(ended),
            },
            end,
        )
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(context, buffer);
        let ended = match &polled {
            Poll::Ready(Ok(())) => buffer.filled().len() == before && buffer.remaining() > 0,
            Poll::Ready(Err(_)) => true,
            Poll::Pending => false,
        };
        if ended {
            // Dropped, the sender completes the receiver too.
            drop(self.ended.take());
        }
        polled
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_are_taken_from_the_host_only() {
        const CID_LOCAL: u32 = 1;
        const CID_GUEST: u32 = 3;
        assert!(check_peer(CID_HOST).is_ok());
        for stranger in [0, CID_LOCAL, CID_GUEST, CID_ANY] {
            let refused = check_peer(stranger);
            assert!(matches!(refused, Err(AcceptError::Stranger(cid)) if cid == stranger));
        }
    }
}
