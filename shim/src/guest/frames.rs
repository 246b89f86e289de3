//! The agent's connection, frame by frame, beneath ttrpc.
//!
//! ```text
//!   socket ──► header ── a reply? ──► whole body ── its envelope is checked ──► ttrpc
//!                 └───── an event? ── a credit ──► whole body ────────────────► ttrpc ──► the owner acts on it: the credit is back
//! ```
//!
//! ttrpc hands each frame to a task of its own and queues what comes, so that a guest that sends faster than its events are acted on would fill
//! the supervisor's memory. Here no frame is longer than its kind may be, no event is read without a credit, of which there are
//! [`limits::EVENTS_AHEAD_MAX`], and after each frame the runtime's other tasks have their turn. Ways to fail: a [`Violation`], which ends the connection
//! and is kept for whoever tells of it.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::{Context, Poll, Waker, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{Malformed, limits, replies};

/// Length, stream, kind, flags.
pub const HEADER_BYTES: usize = 10;

/// The kind of a frame with a request.
const REQUEST: u8 = 1;

/// The kind of a frame with a reply.
const REPLY: u8 = 2;

/// The kind of a frame that is one item of a stream.
const ITEM: u8 = 3;

/// On a request: its sender will send no items. Only a call for a stream has it.
const CLOSED: u8 = 1;

/// How the agent broke the protocol.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// A frame of a kind that an agent does not send.
    #[error("the agent sent a frame of kind {0}")]
    Kind(u8),
    /// A frame that is longer than its kind may be.
    #[error("the agent sent a frame of {length} bytes, where there may be {max}")]
    Length {
        /// What it says.
        length: usize,
        /// What it may say.
        max: usize,
    },
    /// An item of a stream that nobody asked for.
    #[error("the agent sent an item of stream {0}, which is none")]
    Stream(u32),
    /// A frame that does not hold what it should.
    #[error(transparent)]
    Malformed(#[from] Malformed),
}

/// What an agent may send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The answer to a call, or the end of a stream.
    Reply,
    /// An event.
    Event,
}

/// The beginning of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// What it is.
    pub kind: Kind,
    /// Bytes that follow.
    pub length: usize,
}

/// Understands the beginning of a frame, `events` being the stream of events if there is one (pure).
///
/// # Errors
///
/// No agent sends that.
pub fn header(bytes: [u8; HEADER_BYTES], events: Option<u32>) -> Result<Header, Violation> {
    let [a, b, c, d, e, f, g, h, kind, _flags] = bytes;
    let length = usize::try_from(u32::from_be_bytes([a, b, c, d])).unwrap_or(usize::MAX);
    let stream = u32::from_be_bytes([e, f, g, h]);
    let (kind, max) = match kind {
        REPLY => (Kind::Reply, limits::REPLY_MAX_BYTES),
        ITEM if events == Some(stream) => (Kind::Event, limits::EVENT_MAX_BYTES),
        ITEM => return Err(Violation::Stream(stream)),
        other => return Err(Violation::Kind(other)),
    };
    if length > max {
        return Err(Violation::Length { length, max });
    }
    Ok(Header { kind, length })
}

/// Checks a whole frame (pure). An event is checked where it is read.
///
/// # Errors
///
/// No agent sends that.
pub fn body(kind: Kind, bytes: &[u8]) -> Result<(), Violation> {
    match kind {
        Kind::Reply => Ok(replies::envelope(bytes)?),
        Kind::Event => Ok(()),
    }
}

/// What both sides of a connection's [`Gate`] share; clones are about the same connection.
#[derive(Clone, Debug, Default)]
pub(crate) struct Link(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    ahead: Mutex<Ahead>,
    violation: OnceLock<Violation>,
}

/// Events that have been read and not been acted on.
#[derive(Debug, Default)]
struct Ahead {
    count: usize,
    /// The gate, when it waits for a credit.
    waiting: Option<Waker>,
}

/// One event's credit. It is back when this is dropped.
#[derive(Debug)]
pub(crate) struct Credit(Link);

impl Link {
    /// The credit of an event that has been read.
    pub(crate) fn credit(&self) -> Credit {
        Credit(self.clone())
    }

    /// How the protocol was broken, if it was.
    pub(crate) fn violation(&self) -> Option<&Violation> {
        self.0.violation.get()
    }

    /// Keeps the first one.
    pub(crate) fn break_off(&self, violation: Violation) {
        // A later one is a consequence.
        let _ = self.0.violation.set(violation);
    }

    fn ahead(&self) -> MutexGuard<'_, Ahead> {
        self.0.ahead.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn poll_credit(&self, context: &Context<'_>) -> Poll<()> {
        let mut ahead = self.ahead();
        if ahead.count >= limits::EVENTS_AHEAD_MAX {
            ahead.waiting = Some(context.waker().clone());
            return Poll::Pending;
        }
        ahead.count += 1;
        Poll::Ready(())
    }
}

impl Drop for Credit {
    fn drop(&mut self) {
        let mut ahead = self.0.ahead();
        ahead.count = ahead.count.saturating_sub(1);
        let waiting = ahead.waiting.take();
        drop(ahead);
        if let Some(gate) = waiting {
            gate.wake();
        }
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Gate<S> {
    socket: S,
    link: Link,
    incoming: Incoming,
    outgoing: Outgoing,
    /// A frame has been passed on: others are to have their turn.
    passed: bool,
}

/// Where the reading of a frame is.
#[derive(Debug)]
enum Incoming {
    Header {
        bytes: [u8; HEADER_BYTES],
        filled: usize,
    },
    /// An event waits for its credit.
    Credit {
        bytes: [u8; HEADER_BYTES],
        header: Header,
    },
    /// Header and body, as far as they are there.
    Body {
        frame: Vec<u8>,
        kind: Kind,
        filled: usize,
    },
    /// A whole frame, of which so much has been passed on.
    Out { frame: Vec<u8>, taken: usize },
}

const NOTHING: Incoming = Incoming::Header {
    bytes: [0; HEADER_BYTES],
    filled: 0,
};

impl<S: AsyncRead + AsyncWrite + Unpin> Gate<S> {
    pub(crate) fn new(socket: S, link: Link) -> Self {
        Self {
            socket,
            link,
            incoming: NOTHING,
            outgoing: Outgoing::default(),
            passed: false,
        }
    }

    /// Reads on until a whole frame is there. False at the end of the connection.
    fn poll_frame(&mut self, context: &mut Context<'_>) -> Poll<io::Result<bool>> {
        loop {
            match &mut self.incoming {
                Incoming::Header { bytes, filled } => {
                    if !ready!(fill(&mut self.socket, context, bytes, filled))? {
                        return Poll::Ready(Ok(false));
                    }
                    let bytes = *bytes;
                    let header = header(bytes, self.outgoing.events).map_err(io::Error::other)?;
                    self.incoming = match header.kind {
                        Kind::Event => Incoming::Credit { bytes, header },
                        Kind::Reply => begun(bytes, header),
                    };
                }
                Incoming::Credit { bytes, header } => {
                    ready!(self.link.poll_credit(context));
                    self.incoming = begun(*bytes, *header);
                }
                Incoming::Body {
                    frame,
                    kind,
                    filled,
                } => {
                    if !ready!(fill(&mut self.socket, context, frame, filled))? {
                        return Poll::Ready(Ok(false));
                    }
                    body(*kind, &frame[HEADER_BYTES..]).map_err(io::Error::other)?;
                    let frame = std::mem::take(frame);
                    self.incoming = Incoming::Out { frame, taken: 0 };
                }
                Incoming::Out { .. } => return Poll::Ready(Ok(true)),
            }
        }
    }

    /// Passes on what there is room for.
    fn pass_on(&mut self, buffer: &mut ReadBuf<'_>) {
        let Incoming::Out { frame, taken } = &mut self.incoming else {
            return;
        };
        let count = buffer.remaining().min(frame.len() - *taken);
        buffer.put_slice(&frame[*taken..*taken + count]);
        *taken += count;
        if *taken == frame.len() {
            self.incoming = NOTHING;
            self.passed = true;
        }
    }
}

/// A frame of which the header is there.
fn begun(bytes: [u8; HEADER_BYTES], header: Header) -> Incoming {
    let mut frame = vec![0; HEADER_BYTES + header.length];
    frame[..HEADER_BYTES].copy_from_slice(&bytes);
    Incoming::Body {
        frame,
        kind: header.kind,
        filled: HEADER_BYTES,
    }
}

/// Reads until `bytes` is full. False when the connection ends before.
fn fill(
    socket: &mut (impl AsyncRead + Unpin),
    context: &mut Context<'_>,
    bytes: &mut [u8],
    filled: &mut usize,
) -> Poll<io::Result<bool>> {
    while *filled < bytes.len() {
        let mut buffer = ReadBuf::new(&mut bytes[*filled..]);
        ready!(Pin::new(&mut *socket).poll_read(context, &mut buffer))?;
        let count = buffer.filled().len();
        if count == 0 {
            return Poll::Ready(Ok(false));
        }
        *filled += count;
    }
    Poll::Ready(Ok(true))
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Gate<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let gate = self.get_mut();
        if std::mem::take(&mut gate.passed) {
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        match ready!(gate.poll_frame(context)) {
            // At the end nothing is put into the buffer, which says so.
            Ok(_) => {
                gate.pass_on(buffer);
                Poll::Ready(Ok(()))
            }
            Err(error) => {
                if let Some(violation) = error.get_ref().and_then(|e| e.downcast_ref::<Violation>())
                {
                    gate.link.break_off(violation.clone());
                }
                Poll::Ready(Err(error))
            }
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Gate<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let gate = self.get_mut();
        let count = ready!(Pin::new(&mut gate.socket).poll_write(context, bytes))?;
        gate.outgoing.see(&bytes[..count]);
        Poll::Ready(Ok(count))
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().socket).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().socket).poll_shutdown(context)
    }
}

/// What ttrpc asks for, of which only the call for events is of interest.
#[derive(Debug, Default)]
struct Outgoing {
    header: Vec<u8>,
    /// Of the body that is being sent.
    left: usize,
    events: Option<u32>,
}

impl Outgoing {
    fn see(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let skipped = self.left.min(bytes.len());
            self.left -= skipped;
            bytes = &bytes[skipped..];
            let wanted = (HEADER_BYTES - self.header.len()).min(bytes.len());
            self.header.extend_from_slice(&bytes[..wanted]);
            bytes = &bytes[wanted..];
            if let [a, b, c, d, e, f, g, h, kind, flags] = self.header[..] {
                self.left = usize::try_from(u32::from_be_bytes([a, b, c, d])).unwrap_or(usize::MAX);
                if kind == REQUEST && flags & CLOSED != 0 {
                    self.events = Some(u32::from_be_bytes([e, f, g, h]));
                }
                self.header.clear();
            }
        }
    }
}

#[cfg(test)]
mod tests;
