//! The host end of the device: how the rest of the VMM gives it streams and gets streams from it.
//!
//! ```text
//!   Host::connect(port, stream) ──► dials (bounded) ──► worker: REQUEST to the guest
//!   Host::accepted() ◄── arrivals (bounded) ◄── worker: REQUEST from the guest, a socket pair
//! ```
//!
//! There are no paths and no listening sockets: the VMM is jailed. Streams are Unix stream sockets; the device owns its end of each.

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};

use crate::Event;

/// Streams that wait for the device to ask the guest. The device takes them as soon as it runs, so only a VM that is not up or that is
/// paused has any; the bound is what a supervisor may have in flight.
const DIALS_MAX: usize = 256;
/// Streams of connections the guest made that nobody has fetched yet: no fewer than ports, each of
/// which is dialled once.
const ARRIVALS_MAX: usize = 64;

/// Why a stream was not taken. It is closed.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The device does not get on with those it has.
    #[error("{DIALS_MAX} streams wait for the guest already")]
    Busy,
    /// The guest has broken the device; only a reset brings it back.
    #[error("the guest's socket device has failed")]
    Failed,
    /// The stream cannot be made non-blocking.
    #[error("prepare the stream")]
    Prepare(#[source] io::Error),
    /// The device cannot be woken.
    #[error("wake the socket device")]
    Wake(#[source] io::Error),
}

/// A stream to be connected to a guest port.
#[derive(Debug)]
pub(super) struct Dial {
    pub(super) port: u32,
    pub(super) stream: OwnedFd,
}

/// The handle to a device's host end; clones are the same handle.
#[derive(Clone, Debug)]
pub struct Host {
    ends: Arc<Ends>,
}

/// What both sides of the handle share.
#[derive(Debug)]
pub(super) struct Ends {
    dials: Mutex<Dials>,
    /// Signalled when there are dials.
    dialled: Event,
    arrivals: Mutex<VecDeque<(u32, OwnedFd)>>,
    /// Readable while there are arrivals.
    arrived: Event,
    /// The ports that the guest may still dial.
    ports: Mutex<Vec<u32>>,
}

#[derive(Debug, Default)]
struct Dials {
    waiting: VecDeque<Dial>,
    failed: bool,
}

impl Host {
    pub(super) fn new(ports: Vec<u32>) -> io::Result<Self> {
        Ok(Self {
            ends: Arc::new(Ends {
                dials: Mutex::default(),
                dialled: Event::new()?,
                arrivals: Mutex::default(),
                arrived: Event::new()?,
                ports: Mutex::new(ports),
            }),
        })
    }

    pub(super) fn ends(&self) -> Arc<Ends> {
        Arc::clone(&self.ends)
    }

    /// Makes `stream`, a connected Unix stream socket, a connection to `port` of the guest. Returns at once, also while the device is
    /// stopped: it will ask the guest when it runs. What the peer writes meanwhile is kept. If the guest refuses, or the device has no room for one
    /// more connection, the stream is closed and its peer sees the end.
    pub fn connect(&self, port: u32, stream: OwnedFd) -> Result<(), ConnectError> {
        set_nonblocking(&stream).map_err(ConnectError::Prepare)?;
        let mut dials = lock(&self.ends.dials);
        if dials.failed {
            return Err(ConnectError::Failed);
        }
        if dials.waiting.len() >= DIALS_MAX {
            return Err(ConnectError::Busy);
        }
        dials.waiting.push_back(Dial { port, stream });
        self.ends.dialled.signal().map_err(ConnectError::Wake)
    }

    /// The next connection the guest has made: the host port it dialled, and the stream. None when there is none now.
    #[must_use]
    pub fn accepted(&self) -> Option<(u32, OwnedFd)> {
        let mut arrivals = lock(&self.ends.arrivals);
        let next = arrivals.pop_front();
        if arrivals.is_empty() {
            // An event that stays readable costs its owner a look in vain, no more.
            let _ = self.ends.arrived.clear();
        }
        next
    }

    /// Readable while [`Host::accepted`] has something.
    #[must_use]
    pub fn event(&self) -> &Event {
        &self.ends.arrived
    }
}

impl Ends {
    /// Readable when there are dials.
    pub(super) fn dialled(&self) -> &Event {
        &self.dialled
    }

    /// All dials that wait.
    pub(super) fn dials(&self) -> io::Result<VecDeque<Dial>> {
        self.dialled.clear()?;
        Ok(std::mem::take(&mut lock(&self.dials).waiting))
    }

    /// Whether the guest may make one more connection, to this port.
    pub(super) fn listens(&self, port: u32) -> bool {
        lock(&self.arrivals).len() < ARRIVALS_MAX && lock(&self.ports).contains(&port)
    }

    /// Hands the host's end of a connection to whoever fetches it, and closes the port: for the
    /// guest's whole life, whatever becomes of the connection and of the device. The one caller has
    /// seen that there is room.
    pub(super) fn arrive(&self, port: u32, stream: OwnedFd) -> io::Result<()> {
        lock(&self.ports).retain(|open| *open != port);
        let mut arrivals = lock(&self.arrivals);
        arrivals.push_back((port, stream));
        self.arrived.signal()
    }

    /// Opens a port again: the tests of connections make many.
    #[cfg(any(test, fuzzing))]
    pub(super) fn listen(&self, port: u32) {
        let mut ports = lock(&self.ports);
        ports.retain(|open| *open != port);
        ports.push(port);
    }

    /// Takes dials again.
    pub(super) fn open(&self) {
        lock(&self.dials).failed = false;
    }

    /// Refuses dials, and closes those that wait.
    pub(super) fn fail(&self) {
        let mut dials = lock(&self.dials);
        dials.failed = true;
        dials.waiting.clear();
    }
}

/// Reads and writes of `stream` return at once from now on.
pub(super) fn set_nonblocking(stream: &OwnedFd) -> io::Result<()> {
    let flags = fcntl_getfl(stream)?;
    Ok(fcntl_setfl(stream, flags | OFlags::NONBLOCK)?)
}

/// No code panics while it holds one of these locks, so what they guard is whole.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
