//! The host's end of one connection: a non-blocking stream socket, and what it would not take yet.
//!
//! Writing to a socket whose peer is gone raises SIGPIPE unless it is ignored, as it is in every Rust program whose `main` is Rust's.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::Shutdown;

use super::buffers::Buffers;

/// What came of a read.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Read {
    /// So many bytes.
    Bytes(u32),
    /// Nothing now; [`Stream::woken`] will tell.
    Empty,
    /// The peer sends no more.
    End,
    /// The peer closed without reading all it was sent.
    Broken,
}

/// The peer takes no more: it is gone, or has shut down its receiving direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NotTaken;

/// One stream.
#[derive(Debug)]
pub(super) struct Stream {
    fd: OwnedFd,
    /// Bytes from the guest the socket would not take yet. Credit bounds them.
    backlog: VecDeque<u8>,
    /// There may be something to read.
    readable: bool,
    /// The end is to be shown to the peer once the backlog is written.
    finishing: bool,
    finished: bool,
    reading_ended: bool,
}

impl Stream {
    /// A stream on `fd`, which must not block.
    pub(super) fn new(fd: OwnedFd) -> Self {
        Self {
            fd,
            backlog: VecDeque::new(),
            readable: true,
            finishing: false,
            finished: false,
            reading_ended: false,
        }
    }

    /// Whether a read may give something, the end included.
    pub(super) fn is_readable(&self) -> bool {
        self.readable
    }

    /// Whether bytes wait for the socket to take them.
    pub(super) fn has_backlog(&self) -> bool {
        !self.backlog.is_empty()
    }

    /// The socket has news.
    pub(super) fn woken(&mut self) {
        self.readable = !self.reading_ended;
    }

    /// Reads into `room`, at most `limit` bytes; neither may be 0.
    pub(super) fn read(&mut self, room: &Buffers<'_>, limit: u32) -> Read {
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        let result = room.read_from(self.fd.as_fd(), limit);
        match result.map(u32::try_from) {
            Ok(Ok(0)) => {
                self.readable = false;
                self.reading_ended = true;
                Read::End
            }
            Ok(Ok(count)) => Read::Bytes(count),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.readable = false;
                Read::Empty
            }
            Ok(Err(_)) | Err(_) => {
                self.readable = false;
                self.reading_ended = true;
                Read::Broken
            }
        }
    }

    /// Passes `payload` on, or keeps what the socket does not take now; returns how many bytes it took.
    pub(super) fn write(&mut self, mut payload: Buffers<'_>) -> Result<u32, NotTaken> {
        let mut written = 0;
        if self.backlog.is_empty() {
            written = match payload.write_to(self.fd.as_fd()) {
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
                Err(_) => return Err(NotTaken),
            };
        }
        let rest = payload.len();
        if rest > 0 {
            let mut bytes = vec![0; rest];
            let count = payload.copy_to(&mut bytes);
            // Not to the next power of two: what is held is what credit allows.
            self.backlog.reserve_exact(count);
            self.backlog.extend(&bytes[..count]);
        }
        u32::try_from(written).map_err(|_| NotTaken)
    }

    /// Writes from the backlog what the socket takes now; returns how much.
    pub(super) fn flush(&mut self) -> Result<u32, NotTaken> {
        let mut total = 0;
        while !self.backlog.is_empty() {
            let (front, back) = self.backlog.as_slices();
            match rustix::io::writev(&self.fd, &[IoSlice::new(front), IoSlice::new(back)]) {
                Ok(count) => {
                    self.backlog.drain(..count);
                    total += count;
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                Err(_) => return Err(NotTaken),
            }
        }
        if self.backlog.is_empty() {
            self.backlog = VecDeque::new();
            self.finish_if_due();
        }
        u32::try_from(total).map_err(|_| NotTaken)
    }

    /// Drops the backlog: nobody will take it.
    pub(super) fn discard(&mut self) {
        self.backlog = VecDeque::new();
    }

    /// Shows the peer the end of what the guest sends, after the backlog.
    pub(super) fn finish(&mut self) {
        self.finishing = true;
        self.finish_if_due();
    }

    fn finish_if_due(&mut self) {
        if self.finishing && !self.finished && self.backlog.is_empty() {
            self.finished = true;
            // Fails only when the peer is gone, which shows elsewhere.
            let _ = rustix::net::shutdown(&self.fd, Shutdown::Write);
        }
    }

    /// Tells the peer that nothing it writes will be read.
    pub(super) fn stop_reading(&mut self) {
        if !self.reading_ended {
            self.reading_ended = true;
            self.readable = false;
            // Fails only when the peer is gone, which shows elsewhere.
            let _ = rustix::net::shutdown(&self.fd, Shutdown::Read);
        }
    }

    /// Nothing more will be read: the peer's end was seen, or the guest wants no more.
    pub(super) fn reading_ended(&self) -> bool {
        self.reading_ended
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
