//! virtio-mem (virtio 1.2, section 5.15): memory that a running guest gains and gives back, block by block.
//!
//! The device has a region of guest addresses, cut into blocks of [`BLOCK_BYTES`]. Each is *plugged*, and then is memory like any other, or
//! *unplugged*, and then nobody may touch it. The device only says how much it would like to be plugged; which blocks those are, and
//! when, is the driver's choice.
//!
//! 1. The host changes `requested_size` in the configuration space, and `usable_region_size` if that takes more of the region, and raises
//!    the configuration interrupt.
//! 2. The driver asks for blocks by PLUG requests, or, after having moved what is in them elsewhere, hands some over by UNPLUG (section 5.15.6).
//! 3. The device answers ACK; NACK when that is more than is requested; BUSY when the host cannot do it now; ERROR when it makes no sense.
//! 4. UNPLUG_ALL is for a driver that starts on a device it knows nothing of, STATE for one that wants to know.
//!
//! What is plugged stays so over a reset of the device (section 5.15.6.1).
//!
//! The device offers `VIRTIO_MEM_F_UNPLUGGED_INACCESSIBLE` and means it: the host's memory behind an unplugged block can be neither read nor
//! written ([`Backing`]). A vCPU that touches it ends its machine. So does a descriptor of any device that leads there: the thread that follows it
//! dies of a fault, and the process with it, at that instruction. No Rust reference into guest memory exists that could go bad.

use std::fmt;
use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::device::{Device, Resources, StartError, Stopped, Traits, read_config_bytes};
use crate::saved::SavedDevice;
use crate::worker::{Handler, Poller, Worker};
use crate::{Event, GuestMemory, Queue, QueueError};

mod blocks;
mod request;

use blocks::Blocks;
use request::{REQUEST_BYTES, Request, Response};

/// The unit of plugging: a huge page of the host, and the least that a Linux guest can give back.
pub const BLOCK_BYTES: u64 = 2 << 20;

/// Parts, plugged and unplugged by turns, into which a driver may cut the region. Each is a mapping
/// of the host's, of which a process has 65 530 by default and each takes 200 bytes of the host's
/// kernel. Linux plugs from below and unplugs from above.
const PARTS_MAX: u64 = 16 * 1024;

const ID: u32 = 24;
const QUEUE_SIZES: &[u16] = &[16];
const FEATURE_UNPLUGGED_INACCESSIBLE: u64 = 1 << 1;
const CONFIG_BYTES: usize = 56;

/// The host's memory behind the region. Ranges are of bytes from the region's start, and whole blocks.
pub trait Backing: fmt::Debug + Send + 'static {
    /// Makes the range memory that can be used. It reads as zeroes.
    fn plug(&mut self, range: Range<u64>) -> io::Result<()>;

    /// Gives the range back to the host and makes it inaccessible. On an error it is as it was, but for its contents.
    fn unplug(&mut self, range: Range<u64>) -> io::Result<()>;
}

/// The memory device.
#[derive(Debug)]
pub struct Mem {
    region: Range<u64>,
    host: Host,
    /// None while the worker has it.
    backing: Option<Box<dyn Backing>>,
    worker: Option<Worker<MemWorker>>,
}

/// The handle to a device's host end; clones are the same handle.
#[derive(Clone, Debug)]
pub struct Host {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// Readable when the guest has come to what was requested.
    reached: Event,
}

#[derive(Debug)]
struct State {
    blocks: Blocks,
    /// How many of the blocks, from the first on, the driver may ask about; never less than before.
    usable: u64,
    /// Bytes, whole blocks.
    requested: u64,
    /// How often the configuration space has changed, modulo 2³².
    generation: u32,
    /// The host has said in this process how much it wants plugged.
    asked: bool,
    /// The guest has yet to come to what was requested: it is told of once for each request.
    awaited: bool,
}

/// Why an amount of memory cannot be requested.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// Part of a block, or more than the region.
    #[error("{bytes} bytes are not 0 to {max_bytes} in blocks of {BLOCK_BYTES}")]
    Amount {
        /// What was to be plugged.
        bytes: u64,
        /// The region's size.
        max_bytes: u64,
    },
    /// The event could not be signalled.
    #[error("tell that it is so already")]
    Tell(#[source] io::Error),
}

/// Why the device gave up.
#[derive(Debug, thiserror::Error)]
pub enum MemError {
    /// The driver broke the queue.
    #[error("request queue")]
    Queue(#[from] QueueError),
    /// The host has no epoll, or no eventfd.
    #[error("host")]
    Host(#[from] io::Error),
}

impl Mem {
    /// A device for the region of guest addresses `region`, whole blocks, of which none is plugged.
    pub fn new(region: Range<u64>, backing: Box<dyn Backing>) -> io::Result<(Self, Host)> {
        let state = State {
            blocks: Blocks::new((region.end - region.start) / BLOCK_BYTES),
            usable: 0,
            requested: 0,
            generation: 0,
            asked: false,
            awaited: false,
        };
        let shared = Shared {
            state: Mutex::new(state),
            reached: Event::new()?,
        };
        let host = Host {
            shared: Arc::new(shared),
        };
        let device = Self {
            region,
            host: host.clone(),
            backing: Some(backing),
            worker: None,
        };
        Ok((device, host))
    }

    /// Makes a new device what another one was. One that was only paused is it already, and one
    /// that was asked for another amount since then keeps to that.
    fn adopt(&mut self, requested: u64, plugged: &[Range<u64>]) -> Result<(), StartError> {
        let mut state = self.host.shared.lock();
        if !state.asked {
            state.requested = requested;
            state.changed();
        }
        if state.blocks.plugged() == plugged {
            return Ok(());
        }
        let backing = self.backing.as_mut().ok_or(StartError::WrongState)?;
        for range in plugged {
            if range.end > state.usable || !state.blocks.are(range, false) {
                return Err(StartError::WrongState);
            }
            let worker = |source| StartError::Worker { name: NAME, source };
            backing.plug(bytes(range)).map_err(worker)?;
            state.blocks.set(range, true);
            state.changed();
        }
        Ok(())
    }
}

impl Host {
    /// Asks the guest to have `bytes` plugged of the region's first `usable` bytes, or of those that were usable before if these are more. The caller
    /// raises the configuration interrupt.
    pub fn request(&self, bytes: u64, usable: u64) -> Result<(), RequestError> {
        let mut state = self.shared.lock();
        let max_bytes = state.blocks.count() * BLOCK_BYTES;
        if bytes > usable || usable > max_bytes || !bytes.is_multiple_of(BLOCK_BYTES) {
            return Err(RequestError::Amount { bytes, max_bytes });
        }
        state.usable = state.usable.max(usable / BLOCK_BYTES);
        state.requested = bytes;
        state.asked = true;
        state.awaited = true;
        state.changed();
        self.shared.tell(&mut state).map_err(RequestError::Tell)
    }

    /// How many bytes are plugged.
    #[must_use]
    pub fn plugged(&self) -> u64 {
        self.shared.lock().plugged()
    }

    /// Becomes readable when the guest has come to what was requested; cleared by [`Event::clear`].
    #[must_use]
    pub fn event(&self) -> &Event {
        &self.shared.reached
    }
}

impl Shared {
    /// A panic ends the process, so the lock is never seen poisoned.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Signals when what was requested is so.
    fn tell(&self, state: &mut State) -> io::Result<()> {
        if state.awaited && state.plugged() == state.requested {
            state.awaited = false;
            self.reached.signal()?;
        }
        Ok(())
    }
}

impl State {
    fn changed(&mut self) {
        self.generation = self.generation.wrapping_add(1);
    }

    fn plugged(&self) -> u64 {
        self.blocks.plugged_count() * BLOCK_BYTES
    }

    /// Carries out a request of the driver's; None is one that makes no sense (section 5.15.6.2).
    fn answer(&mut self, request: Option<&Request>, backing: &mut dyn Backing) -> Response {
        match request {
            Some(Request::Plug(range) | Request::Unplug(range) | Request::State(range))
                if range.end > self.usable =>
            {
                Response::Error
            }
            Some(Request::Plug(range)) if self.blocks.are(range, false) => {
                if self.plugged() + (range.end - range.start) * BLOCK_BYTES > self.requested {
                    return Response::Nack;
                }
                self.switch(range, true, backing)
            }
            Some(Request::Unplug(range)) if self.blocks.are(range, true) => {
                self.switch(range, false, backing)
            }
            Some(Request::UnplugAll) => {
                for range in self.blocks.plugged() {
                    if self.switch(&range, false, backing) == Response::Busy {
                        return Response::Busy;
                    }
                }
                Response::Ack
            }
            Some(Request::State(range)) => match self.blocks.state(range) {
                Some(state) => Response::State(state),
                None => Response::Error,
            },
            _ => Response::Error,
        }
    }

    /// Plugs or unplugs a range. When the host cannot do it, the driver may try again later.
    fn switch(&mut self, range: &Range<u64>, on: bool, backing: &mut dyn Backing) -> Response {
        if self.blocks.parts_with(range, on) > PARTS_MAX {
            return Response::Busy;
        }
        let done = if on {
            backing.plug(bytes(range))
        } else {
            backing.unplug(bytes(range))
        };
        if done.is_err() {
            return Response::Busy;
        }
        self.blocks.set(range, on);
        self.changed();
        Response::Ack
    }
}

/// A range of blocks in bytes.
fn bytes(blocks: &Range<u64>) -> Range<u64> {
    blocks.start * BLOCK_BYTES..blocks.end * BLOCK_BYTES
}

/// The worker's thread.
const NAME: &str = "mem";

impl Device for Mem {
    fn traits(&self) -> Traits {
        Traits {
            id: ID,
            features: FEATURE_UNPLUGGED_INACCESSIBLE,
            queue_sizes: QUEUE_SIZES,
        }
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        const NODE: u64 = 0;
        let size = self.region.end - self.region.start;
        let state = self.host.shared.lock();
        // block_size, node_id, addr, region_size, usable_region_size, plugged_size, requested_size (section 5.15.4).
        let fields = [
            BLOCK_BYTES,
            NODE,
            self.region.start,
            size,
            state.usable * BLOCK_BYTES,
            state.plugged(),
            state.requested,
        ];
        let mut config = [0; CONFIG_BYTES];
        for (to, field) in config.chunks_exact_mut(8).zip(fields) {
            to.copy_from_slice(&field.to_le_bytes());
        }
        read_config_bytes(&config, offset, data);
    }

    fn config_generation(&self) -> u32 {
        self.host.shared.lock().generation
    }

    fn start(&mut self, mut resources: Resources) -> Result<(), StartError> {
        let queue = resources.take_queue(0)?;
        match &resources.saved {
            SavedDevice::Fresh => {}
            SavedDevice::Mem { requested, plugged } => self.adopt(*requested, plugged)?,
            _ => return Err(StartError::WrongState),
        }
        let worker = MemWorker {
            region: self.region.clone(),
            memory: resources.memory,
            queue,
            shared: Arc::clone(&self.host.shared),
            backing: self.backing.take().ok_or(StartError::WrongState)?,
        };
        let spawned = Worker::spawn(NAME, worker, resources.confine, resources.failure);
        let worker = spawned.map_err(|failed| {
            self.backing = Some(failed.handler.backing);
            failed.error
        })?;
        self.worker = Some(worker);
        Ok(())
    }

    fn stop(&mut self) -> Option<Stopped> {
        let worker = self.worker.take()?.stop()?;
        self.backing = Some(worker.backing);
        let state = self.host.shared.lock();
        Some(Stopped {
            queues: vec![Some(worker.queue.state())],
            saved: SavedDevice::Mem {
                requested: state.requested,
                plugged: state.blocks.plugged(),
            },
        })
    }
}

#[derive(Debug)]
struct MemWorker {
    region: Range<u64>,
    memory: Arc<GuestMemory>,
    queue: Queue,
    shared: Arc<Shared>,
    backing: Box<dyn Backing>,
}

impl MemWorker {
    fn serve(&mut self) -> Result<(), MemError> {
        self.queue.serve(&self.memory, |chain| {
            let mut bytes = [0; REQUEST_BYTES];
            if chain.read_into(&mut bytes)? < REQUEST_BYTES {
                return Err(QueueError::BadChain { head: chain.head() }.into());
            }
            let request = Request::parse(&bytes, self.region.start);
            let mut state = self.shared.lock();
            let response = state.answer(request.as_ref(), self.backing.as_mut());
            // Before the driver knows, so that who hears of it finds the guest in it.
            self.shared.tell(&mut state)?;
            drop(state);
            Ok(chain.write_from(&response.bytes())?)
        })
    }
}

impl Handler for MemWorker {
    type Error = MemError;

    fn register(&mut self, poller: &Poller) -> Result<(), MemError> {
        poller.add(self.queue.kick(), 0)?;
        self.serve()
    }

    fn ready(&mut self, _token: u64, _poller: &Poller) -> Result<(), MemError> {
        self.queue.acknowledge_kick()?;
        self.serve()
    }
}

#[cfg(test)]
mod tests;
