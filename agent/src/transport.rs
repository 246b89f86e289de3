//! The connections to the host: the control connection, which the agent dials and then serves, and the port for streams.
//!
//! In a guest they are vsock; for tests on a host they are Unix sockets in a directory.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::pin::Pin;
use std::task::{Context, Poll};

use agent_api::{PORT_CONTROL, PORT_STREAM};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, VsockAddr, bind, listen, socket,
};
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

/// Listens for streams on the guest's port.
pub(crate) fn listen_vsock() -> io::Result<AsyncFd<OwnedFd>> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let listener = socket(AddressFamily::Vsock, SockType::Stream, flags, None)?;
    bind(listener.as_raw_fd(), &VsockAddr::new(CID_ANY, PORT_STREAM))?;
    listen(&listener, Backlog::new(BACKLOG)?)?;
    watch(listener, Interest::READABLE)
}

/// Dials the host: the word that this guest is ready.
pub(crate) async fn dial_vsock() -> io::Result<VsockStream> {
    VsockStream::connect(VsockAddr::new(CID_HOST, PORT_CONTROL)).await
}

/// Listens for streams on a Unix socket.
pub(crate) fn listen_unix(path: &Path) -> io::Result<AsyncFd<OwnedFd>> {
    let listener = std::os::unix::net::UnixListener::bind(path)?;
    listener.set_nonblocking(true)?;
    watch(listener.into(), Interest::READABLE)
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
