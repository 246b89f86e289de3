//! The thread of the socket device: between the three queues and the [`Muxer`].

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;

use super::buffers::{Buffers, Permit};
use super::host::Ends;
use super::muxer::Muxer;
use super::packet::{HEADER_BYTES, Header};
use crate::worker::{Handler, Poller};
use crate::{GuestMemory, Queue, QueueError, QueueState};

const RX: u64 = 0;
const TX: u64 = 1;
const EVENTS: u64 = 2;
const STREAMS: u64 = 3;
const DIALS: u64 = 4;

/// Packets taken, and packets sent, before the guest is interrupted and the other direction and a request to stop are looked at. Half a ring: the
/// guest empties one half while the other is filled.
const BATCH_MAX: usize = 64;
/// `VIRTIO_VSOCK_EVENT_TRANSPORT_RESET` as it is sent: `struct virtio_vsock_event`, section 5.10.6.7.
const TRANSPORT_RESET: [u8; 4] = 0u32.to_le_bytes();

/// Why the device cannot go on.
#[derive(Debug, thiserror::Error)]
pub(super) enum VsockError {
    /// A queue is not what it must be.
    #[error(transparent)]
    Queue(#[from] QueueError),
    /// Epoll or an eventfd failed.
    #[error("wait for the queues and the streams: {0}")]
    Wait(io::Error),
}

/// The queues in the order of section 5.10.2.
#[derive(Debug)]
pub(super) struct Queues {
    pub(super) rx: Queue,
    pub(super) tx: Queue,
    pub(super) events: Queue,
}

impl Queues {
    pub(super) fn states(&self) -> [QueueState; 3] {
        [self.rx.state(), self.tx.state(), self.events.state()]
    }
}

/// What runs in the thread.
#[derive(Debug)]
pub(super) struct VsockWorker {
    memory: Arc<GuestMemory>,
    queues: Queues,
    /// None once the device has failed.
    muxer: Option<Muxer>,
    ends: Arc<Ends>,
}

impl VsockWorker {
    pub(super) fn new(
        memory: Arc<GuestMemory>,
        queues: Queues,
        muxer: Muxer,
        ends: Arc<Ends>,
    ) -> Self {
        Self {
            memory,
            queues,
            muxer: Some(muxer),
            ends,
        }
    }

    /// The queues, and the connections unless the device has failed.
    pub(super) fn into_parts(self) -> (Queues, Option<Muxer>) {
        (self.queues, self.muxer)
    }

    /// Moves packets both ways, then interrupts the guest once.
    fn turn(&mut self) -> Result<(), VsockError> {
        let Some(muxer) = &mut self.muxer else {
            return Ok(());
        };
        if muxer.owes_transport_reset() && send_event(&mut self.queues.events, &self.memory)? {
            muxer.transport_reset_sent();
        }
        let mut more = take_packets(&mut self.queues.tx, &self.memory, muxer)?;
        let was_held = !muxer.may_receive();
        more |= send_packets(&mut self.queues.rx, &self.memory, muxer)?;
        more |= was_held && muxer.may_receive();
        self.queues.tx.notify(&self.memory)?;
        self.queues.rx.notify(&self.memory)?;
        if more {
            // Comes back here by way of epoll, which looks at everything else first.
            self.queues.tx.kick().signal().map_err(VsockError::Wait)?;
        }
        Ok(())
    }

    fn woken(&mut self, token: u64) -> Result<(), VsockError> {
        let Some(muxer) = &mut self.muxer else {
            return Ok(());
        };
        match token {
            RX => {
                self.queues.rx.acknowledge_kick()?;
                self.queues.rx.disarm(&self.memory)?;
            }
            TX => {
                self.queues.tx.acknowledge_kick()?;
                self.queues.tx.disarm(&self.memory)?;
            }
            EVENTS => self.queues.events.acknowledge_kick()?,
            STREAMS => muxer.look().map_err(VsockError::Wait)?,
            _ => muxer.dial().map_err(VsockError::Wait)?,
        }
        self.turn()
    }

    /// Closes everything the device holds, since it does not go on.
    fn give_up(&mut self) {
        self.muxer = None;
        self.ends.fail();
    }
}

impl Handler for VsockWorker {
    type Error = VsockError;

    fn register(&mut self, poller: &Poller) -> Result<(), VsockError> {
        let add = |file, token| poller.add(file, token).map_err(VsockError::Wait);
        add(self.queues.rx.kick().as_fd(), RX)?;
        add(self.queues.tx.kick().as_fd(), TX)?;
        add(self.queues.events.kick().as_fd(), EVENTS)?;
        add(self.ends.dialled().as_fd(), DIALS)?;
        if let Some(muxer) = &self.muxer {
            add(muxer.news(), STREAMS)?;
        }
        let result = self.turn();
        if result.is_err() {
            self.give_up();
        }
        result
    }

    fn ready(&mut self, token: u64, _poller: &Poller) -> Result<(), VsockError> {
        let result = self.woken(token);
        if result.is_err() {
            self.give_up();
        }
        result
    }
}

/// Takes what the guest has sent; true if there may be more.
fn take_packets(
    tx: &mut Queue,
    memory: &GuestMemory,
    muxer: &mut Muxer,
) -> Result<bool, QueueError> {
    for _ in 0..BATCH_MAX {
        if !muxer.may_receive() {
            return Ok(false);
        }
        let Some(chain) = tx.next(memory)? else {
            if tx.rearm(memory)? {
                continue;
            }
            return Ok(false);
        };
        let head = chain.head();
        let mut payload = Buffers::readable(&chain)?;
        let header = payload
            .split_front(HEADER_BYTES)
            .ok_or(QueueError::BadChain { head })?;
        let mut bytes = [0; HEADER_BYTES];
        header.copy_to(&mut bytes);
        muxer.receive(&Header::from_bytes(&bytes), payload);
        tx.complete(memory, head, 0)?;
    }
    Ok(true)
}

/// Fills the room the guest offers; true if there may be more to send.
fn send_packets(
    rx: &mut Queue,
    memory: &GuestMemory,
    muxer: &mut Muxer,
) -> Result<bool, QueueError> {
    for _ in 0..BATCH_MAX {
        if !muxer.may_send() {
            return Ok(false);
        }
        let Some(chain) = rx.next(memory)? else {
            if rx.rearm(memory)? {
                continue;
            }
            return Ok(false);
        };
        let permit = Permit::new(&chain)?;
        match muxer.send(&permit) {
            Some(written) => rx.complete(memory, chain.head(), written)?,
            None => {
                rx.put_back();
                return Ok(false);
            }
        }
    }
    Ok(true)
}

/// Tells the guest that all connections are gone; false if it offers no room for that now.
fn send_event(events: &mut Queue, memory: &GuestMemory) -> Result<bool, QueueError> {
    loop {
        if let Some(chain) = events.next(memory)? {
            let written = chain.write_from(&TRANSPORT_RESET)?;
            events.complete(memory, chain.head(), written)?;
            events.notify(memory)?;
            return Ok(true);
        }
        if !events.rearm(memory)? {
            return Ok(false);
        }
    }
}
