//! One end of a byte stream, whatever it is, without ever blocking the supervisor's only thread.
//!
//! A socket takes a flag per call. A FIFO, pipe or terminal is used through an open file description of its own, so that
//! its non-blocking mode is not forced on other processes that have the descriptor. `/dev/null` can neither be
//! waited for nor keep anybody waiting, and is used directly. A regular file cannot be waited for, but its file system can keep
//! whoever uses it waiting: it is read, written and closed by the [`Storage`].

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, Shutdown};
use tokio::io::Interest;

use crate::polled::{self, Polled};
use crate::storage::Storage;

/// See the module.
#[derive(Debug)]
pub(crate) enum End {
    /// Waited for, used with `MSG_DONTWAIT`.
    Socket(Polled),
    /// Waited for; its open file description is non-blocking.
    Polled(Polled),
    /// Always ready.
    Ready(File),
    /// Ready when its file system says so.
    Stored(Stored),
}

/// A file that only the storage's threads use.
#[derive(Debug)]
pub(crate) struct Stored {
    /// None when it is being closed.
    file: Option<Arc<File>>,
    storage: Storage,
}

impl Stored {
    pub(super) fn new(file: File, storage: Storage) -> Self {
        Self {
            file: Some(Arc::new(file)),
            storage,
        }
    }

    /// Does `work` on it.
    async fn on_file<T: Send + 'static>(
        &self,
        work: impl FnOnce(&File) -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let file = self.file.clone().ok_or(io::ErrorKind::NotConnected)?;
        let done = self.storage.run_unhurried("a stream", move || work(&file));
        done.await.map_err(io::Error::other)?
    }

    async fn read(&self, buffer: &mut Vec<u8>) -> io::Result<usize> {
        let mut taken = std::mem::take(buffer);
        let (taken, length) = self
            .on_file(move |mut file| {
                let length = file.read(&mut taken)?;
                Ok((taken, length))
            })
            .await?;
        *buffer = taken;
        Ok(length)
    }

    async fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        let bytes = bytes.to_vec();
        let length = bytes.len();
        self.on_file(move |mut file| file.write_all(&bytes)).await?;
        Ok(length)
    }
}

impl Drop for Stored {
    /// A file system may want to say something about a file that is closed.
    fn drop(&mut self) {
        if let Some(file) = self.file.take() {
            self.storage.leave(move || drop(file));
        }
    }
}

impl End {
    /// A connected stream socket.
    pub(super) fn socket(socket: OwnedFd) -> io::Result<Self> {
        Ok(Self::Socket(polled::watch(socket)?))
    }

    /// A descriptor whose open file description is non-blocking, if it can be waited for at all.
    pub(super) fn polled(fd: OwnedFd, interest: Interest) -> io::Result<Self> {
        match polled::watch_for(fd, interest) {
            Ok(fd) => Ok(Self::Polled(fd)),
            Err((fd, e)) if e.raw_os_error() == Some(Errno::PERM.raw_os_error()) => {
                Ok(Self::Ready(fd.into()))
            }
            Err((_, e)) => Err(e),
        }
    }

    /// Waits until there is something to read, or the end.
    pub(super) async fn readable(&self) -> io::Result<()> {
        match self {
            Self::Socket(fd) | Self::Polled(fd) => {
                fd.readable().await?.retain_ready();
                Ok(())
            }
            Self::Ready(_) | Self::Stored(_) => {
                // Others have their turn between two chunks of a file.
                tokio::task::yield_now().await;
                Ok(())
            }
        }
    }

    /// Reads what is there; 0 is the end. `WouldBlock`: nothing is there now. After an error, the buffer may be gone.
    pub(super) async fn read(&self, buffer: &mut Vec<u8>) -> io::Result<usize> {
        match self {
            Self::Stored(file) => file.read(buffer).await,
            Self::Socket(fd) => fd.try_io(Interest::READABLE, |fd| {
                let (length, _) = rustix::net::recv(fd, &mut buffer[..], RecvFlags::DONTWAIT)?;
                Ok(length)
            }),
            Self::Polled(fd) => fd.try_io(Interest::READABLE, |fd| {
                match rustix::io::read(fd, &mut buffer[..]) {
                    // A terminal whose other end is closed.
                    Err(Errno::IO) => Ok(0),
                    result => Ok(result?),
                }
            }),
            Self::Ready(file) => {
                let mut file: &File = file;
                file.read(buffer)
            }
        }
    }

    /// Writes all of it, as fast as the other side takes it.
    pub(super) async fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let written = match self {
                Self::Socket(fd) => {
                    fd.async_io(Interest::WRITABLE, |fd| {
                        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
                        Ok(rustix::net::send(fd, bytes, flags)?)
                    })
                    .await?
                }
                Self::Polled(fd) => {
                    fd.async_io(Interest::WRITABLE, |fd| Ok(rustix::io::write(fd, bytes)?))
                        .await?
                }
                Self::Ready(file) => {
                    let mut file: &File = file;
                    file.write(bytes)?
                }
                Self::Stored(file) => file.write(bytes).await?,
            };
            if written == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            bytes = &bytes[written..];
        }
        Ok(())
    }

    /// No more will be written; the other side reads end-of-file. For sockets; the others do so when they are dropped.
    pub(super) fn shut_down_writing(&self) {
        if let Self::Socket(fd) = self
            && let Err(e) = rustix::net::shutdown(fd.as_fd(), Shutdown::Write)
        {
            tracing::debug!("a stream to be shut down is closed already: {e}");
        }
    }

    /// Whether it is a terminal.
    pub(super) fn is_terminal(&self) -> bool {
        matches!(self, Self::Polled(fd) if rustix::termios::isatty(fd.get_ref()))
    }

    /// Whether the other side of a FIFO or terminal has gone for both directions.
    pub(super) fn has_hung_up(&self) -> bool {
        matches!(self, Self::Polled(fd) if has_hung_up(fd.get_ref()))
    }

    /// Neither side will hear more of the other. For sockets.
    pub(super) fn shut_down(&self) {
        if let Self::Socket(fd) = self
            && let Err(e) = rustix::net::shutdown(fd.as_fd(), Shutdown::Both)
        {
            tracing::debug!("a stream to be shut down is closed already: {e}");
        }
    }

    /// Waits until the other side of a stream that only takes bytes has closed it. Never ready for what is not a socket.
    pub(super) async fn closed(&self) {
        let Self::Socket(fd) = self else {
            return std::future::pending().await;
        };
        loop {
            let Ok(mut ready) = fd.ready(Interest::READABLE).await else {
                return;
            };
            if ready.ready().is_read_closed() && ready.ready().is_write_closed() {
                return;
            }
            let mut byte = [0];
            let flags = RecvFlags::DONTWAIT | RecvFlags::PEEK;
            match rustix::net::recv(fd, &mut byte[..], flags) {
                Err(Errno::AGAIN) => ready.clear_ready(),
                _ => return,
            }
        }
    }
}

/// Whether whoever else had `fd`'s other side has gone.
pub(super) fn has_hung_up(fd: &OwnedFd) -> bool {
    let mut fds = [PollFd::new(fd, PollFlags::IN)];
    let now = Timespec::default();
    let polled = rustix::event::poll(&mut fds, Some(&now));
    polled.is_ok() && fds[0].revents().contains(PollFlags::HUP)
}
