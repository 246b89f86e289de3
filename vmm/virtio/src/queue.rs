//! A split virtqueue, from the device's side.
//!
//! A queue is three tables in guest memory (virtio 1.2, section 2.7): descriptors, the *available* ring in which the driver offers chains, and the
//! *used* ring in which the device gives them back.
//!
//! 1. The driver writes a chain's head into the available ring and *kicks*: an eventfd becomes readable.
//! 2. [`Queue::next`] takes the head and checks the chain.
//! 3. The device reads, works, writes.
//! 4. [`Queue::complete`] puts the head and the number of bytes written into the used ring.
//! 5. [`Queue::notify`] raises the interrupt, if the driver wants one (it says so by the event index, section 2.7.10).
//! 6. Before it sleeps the device asks for kicks again ([`Queue::rearm`]) and looks once more, since one may just have been missed.
//!
//! [`Queue::serve`] is steps 2 to 6 for a device that answers each chain at once.
//!
//! A driver that breaks the rules breaks its own device: every method returns [`QueueError`], upon which the worker ends and the driver sees
//! `DEVICE_NEEDS_RESET`.

use std::io;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use virtio_queue::QueueT;
use vm_memory::GuestAddress;

use crate::{Chain, Event, GuestMemory, Irq};

/// Chains that [`Queue::serve`] answers at a time: a ring of the devices that use it.
const SERVE_CHAINS_MAX: usize = 64;

/// Why a queue cannot go on. All but the last two are the driver's doing.
#[derive(Debug, thiserror::Error)]
pub enum QueueError {
    /// The rings do not lie in memory, or their indices make no sense.
    #[error("the rings of the queue are invalid")]
    BadRing,
    /// A chain does not lie in memory, or has not the form the device needs.
    #[error("descriptor chain {head} is invalid")]
    BadChain {
        /// The head of the chain.
        head: u16,
    },
    /// The queue's size or addresses cannot be a queue's.
    #[error("the driver configured an impossible queue")]
    BadConfiguration,
    /// The eventfd of the kick could not be read.
    #[error("read the queue's event")]
    Kick(#[source] io::Error),
    /// The interrupt could not be raised.
    #[error("raise the queue's interrupt")]
    Interrupt(#[source] io::Error),
}

/// Everything about a queue that is not in guest memory.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
pub struct QueueState {
    /// Entries, a power of two.
    pub size: u16,
    /// Guest address of the descriptor table.
    pub descriptors: u64,
    /// Guest address of the available ring.
    pub available: u64,
    /// Guest address of the used ring.
    pub used: u64,
    /// The next entry of the available ring the device will take.
    pub next_available: u16,
    /// The next entry of the used ring the device will write.
    pub next_used: u16,
    /// The driver accepted `VIRTIO_F_EVENT_IDX`.
    pub event_index: bool,
}

/// A live queue, owned by the thread that runs its device.
#[derive(Debug)]
pub struct Queue {
    ring: virtio_queue::Queue,
    kick: Event,
    irq: Arc<Irq>,
}

impl Queue {
    /// A queue where `state` says it stopped. `size_max` is the device's limit.
    pub fn new(
        state: &QueueState,
        size_max: u16,
        memory: &GuestMemory,
        kick: Event,
        irq: Arc<Irq>,
    ) -> Result<Self, QueueError> {
        let mut ring =
            virtio_queue::Queue::new(size_max).map_err(|_| QueueError::BadConfiguration)?;
        let configured = ring
            .try_set_size(state.size)
            .and_then(|()| ring.try_set_desc_table_address(GuestAddress(state.descriptors)))
            .and_then(|()| ring.try_set_avail_ring_address(GuestAddress(state.available)))
            .and_then(|()| ring.try_set_used_ring_address(GuestAddress(state.used)));
        configured.map_err(|_| QueueError::BadConfiguration)?;
        ring.set_event_idx(state.event_index);
        ring.set_next_avail(state.next_available);
        ring.set_next_used(state.next_used);
        ring.set_ready(true);
        if !ring.is_valid(memory) {
            return Err(QueueError::BadConfiguration);
        }
        Ok(Self { ring, kick, irq })
    }

    /// Where the queue is now.
    #[must_use]
    pub fn state(&self) -> QueueState {
        QueueState {
            size: self.ring.size(),
            descriptors: self.ring.desc_table(),
            available: self.ring.avail_ring(),
            used: self.ring.used_ring(),
            next_available: self.ring.next_avail(),
            next_used: self.ring.next_used(),
            event_index: self.ring.event_idx_enabled(),
        }
    }

    /// Becomes readable when the driver kicks.
    #[must_use]
    pub fn kick(&self) -> &Event {
        &self.kick
    }

    /// Forgets the kicks so far; call it before looking at the queue.
    pub fn acknowledge_kick(&self) -> Result<(), QueueError> {
        self.kick.clear().map(|_| ()).map_err(QueueError::Kick)
    }

    /// The next chain the driver offers, or None.
    pub fn next<'m>(&mut self, memory: &'m GuestMemory) -> Result<Option<Chain<'m>>, QueueError> {
        // An index further ahead than the ring is long is the one lie that pop_descriptor_chain() would take for "nothing there".
        let available = self
            .ring
            .avail_idx(memory, std::sync::atomic::Ordering::Acquire)
            .map_err(|_| QueueError::BadRing)?;
        let pending = available.0.wrapping_sub(self.ring.next_avail());
        if pending > self.ring.size() {
            return Err(QueueError::BadRing);
        }
        if pending == 0 {
            return Ok(None);
        }
        let chain = self
            .ring
            .pop_descriptor_chain(memory)
            .ok_or(QueueError::BadRing)?;
        Ok(Some(Chain::new(chain, memory)))
    }

    /// Answers what the driver offers until it offers no more, then asks for kicks. `answer` does
    /// the device's work on a chain and returns how many bytes it wrote; its error ends the
    /// serving, and the chain stays with the device.
    ///
    /// A driver may go on offering for ever, while another processor of the guest resets the device
    /// or the host pauses the machine. So this returns after [`SERVE_CHAINS_MAX`] chains and kicks
    /// itself: the worker looks at an order to stop in between.
    pub fn serve<E: From<QueueError>>(
        &mut self,
        memory: &GuestMemory,
        mut answer: impl FnMut(&Chain<'_>) -> Result<u32, E>,
    ) -> Result<(), E> {
        for _ in 0..SERVE_CHAINS_MAX {
            if let Some(chain) = self.next(memory)? {
                let written = answer(&chain)?;
                self.complete(memory, chain.head(), written)?;
                continue;
            }
            self.notify(memory)?;
            if !self.rearm(memory)? {
                return Ok(());
            }
        }
        self.notify(memory)?;
        Ok(self.kick.signal().map_err(QueueError::Kick)?)
    }

    /// Gives the chain just taken with [`Queue::next`] back to the ring as if it had not been taken.
    pub fn put_back(&mut self) {
        self.ring
            .set_next_avail(self.ring.next_avail().wrapping_sub(1));
    }

    /// Gives a chain back to the driver, `written` bytes of it filled.
    pub fn complete(
        &mut self,
        memory: &GuestMemory,
        head: u16,
        written: u32,
    ) -> Result<(), QueueError> {
        self.ring
            .add_used(memory, head, written)
            .map_err(|_| QueueError::BadRing)
    }

    /// Raises the interrupt if the driver wants to know of what was completed since it was last raised.
    pub fn notify(&mut self, memory: &GuestMemory) -> Result<(), QueueError> {
        if self
            .ring
            .needs_notification(memory)
            .map_err(|_| QueueError::BadRing)?
        {
            self.irq.used_buffer().map_err(QueueError::Interrupt)?;
        }
        Ok(())
    }

    /// Asks for kicks. True when chains were offered meanwhile: look again before sleeping.
    pub fn rearm(&mut self, memory: &GuestMemory) -> Result<bool, QueueError> {
        self.ring
            .enable_notification(memory)
            .map_err(|_| QueueError::BadRing)
    }

    /// Tells the driver that kicks are not needed now, since the device is looking anyway.
    pub fn disarm(&mut self, memory: &GuestMemory) -> Result<(), QueueError> {
        self.ring
            .disable_notification(memory)
            .map_err(|_| QueueError::BadRing)
    }
}
