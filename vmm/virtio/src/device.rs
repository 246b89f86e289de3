//! What a virtio device is to its transport: data, a configuration space, and start and stop.
//!
//! ```text
//!                 start(resources)                     guest resets, host pauses
//!   stopped ───────────────────────────► started ───────────────────────────────► stopped
//!   (plain state)                        (a thread owns the queues)      stop()   (plain state)
//! ```
//!
//! The transport owns a queue's registers until the driver is ready, hands the queues over with [`Device::start`] and takes their positions
//! back with [`Device::stop`]. Reset throws what `stop` returned away; pause and snapshot keep it and start from it again.

use std::sync::Arc;
use std::{fmt, io};

use crate::saved::SavedDevice;
use crate::worker::Failure;
use crate::{GuestMemory, Irq, Queue, QueueError, QueueState};

/// How a device's threads confine themselves: the host's choice, so that a device need not know it.
#[derive(Clone)]
pub struct Confine(Arc<dyn Fn(&'static str) -> io::Result<()> + Send + Sync>);

impl Confine {
    /// Confinement by `enter`, which gets the thread's name.
    pub fn new(enter: impl Fn(&'static str) -> io::Result<()> + Send + Sync + 'static) -> Self {
        Self(Arc::new(enter))
    }

    /// No confinement.
    #[must_use]
    pub fn none() -> Self {
        Self::new(|_| Ok(()))
    }

    /// Confines the calling thread; every thread of a device calls it first.
    pub fn enter(&self, thread: &'static str) -> io::Result<()> {
        (self.0)(thread)
    }
}

impl fmt::Debug for Confine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Confine")
    }
}

/// What a device is, before anybody has talked to it.
#[derive(Clone, Copy, Debug)]
pub struct Traits {
    /// The virtio device id (virtio 1.2, section 5).
    pub id: u32,
    /// Feature bits the device offers beside those of the transport.
    pub features: u64,
    /// The largest size of each queue; their number is the number of queues. Powers of two.
    pub queue_sizes: &'static [u16],
}

/// What a device gets to run with.
#[derive(Debug)]
pub struct Resources {
    /// The guest's memory.
    pub memory: Arc<GuestMemory>,
    /// One per entry of [`Traits::queue_sizes`], in order. A queue the driver left unconfigured is absent.
    pub queues: Vec<Option<Queue>>,
    /// The device's interrupt.
    pub irq: Arc<Irq>,
    /// The feature bits both sides agreed on.
    pub features: u64,
    /// Where the device was when it was last stopped, [`SavedDevice::default`] after a reset.
    pub saved: SavedDevice,
    /// For the device's threads.
    pub confine: Confine,
    /// Raised by a device that cannot go on.
    pub failure: Arc<Failure>,
}

impl Resources {
    /// Takes a queue the device cannot do without.
    pub fn take_queue(&mut self, index: usize) -> Result<Queue, StartError> {
        self.queues
            .get_mut(index)
            .and_then(Option::take)
            .ok_or(StartError::MissingQueue { index })
    }
}

/// A device that was stopped: all there is to know to start it again.
#[derive(Debug)]
pub struct Stopped {
    /// In the order of [`Resources::queues`].
    pub queues: Vec<Option<QueueState>>,
    /// The device's own part.
    pub saved: SavedDevice,
}

/// Why a device did not start. The guest sees `DEVICE_NEEDS_RESET`.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The driver left out a queue the device cannot do without.
    #[error("queue {index} is not configured")]
    MissingQueue {
        /// Its index.
        index: usize,
    },
    /// The driver laid a queue out where none can be.
    #[error("set up a queue")]
    Queue(#[source] QueueError),
    /// The host refused a thread, an eventfd or an epoll instance.
    #[error("start the worker {name}")]
    Worker {
        /// The worker's name.
        name: &'static str,
        /// The host's reason.
        #[source]
        source: io::Error,
    },
    /// The state to start from is not this device's.
    #[error("the saved state is of another device")]
    WrongState,
}

/// A virtio device. All calls come from whoever holds the transport's lock; none may block on the guest.
pub trait Device: fmt::Debug + Send {
    /// Constant for the life of the device.
    fn traits(&self) -> Traits;

    /// Reads the configuration space. Bytes beyond its end read as 0.
    fn read_config(&self, offset: u64, data: &mut [u8]);

    /// Another number whenever [`Device::read_config`] may give something else: a driver that reads
    /// a space in parts sees whether they are of one time (virtio 1.2, section 4.2.2).
    fn config_generation(&self) -> u32 {
        0
    }

    /// Writes the configuration space. Writes to what is read-only are ignored.
    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}

    /// Starts the device: called once the driver has set `DRIVER_OK`, or to resume. The device is stopped before; on an error it still is.
    fn start(&mut self, resources: Resources) -> Result<(), StartError>;

    /// Stops the device and returns its state once nothing of it touches guest memory any more. None when it was not started.
    fn stop(&mut self) -> Option<Stopped>;
}

/// Copies a configuration space of little-endian bytes, as [`Device::read_config`] wants it.
pub fn read_config_bytes(config: &[u8], offset: u64, data: &mut [u8]) {
    data.fill(0);
    let Ok(offset) = usize::try_from(offset) else {
        return;
    };
    for (to, from) in data.iter_mut().zip(config.iter().skip(offset)) {
        *to = *from;
    }
}
