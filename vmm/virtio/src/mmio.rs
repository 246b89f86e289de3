//! The register machine of virtio-mmio (virtio 1.2, section 4.2.2), version 2.
//!
//! A driver brings a device up by writing the status register, one bit more each time (section 3.1.1):
//!
//! ```text
//!            ACKNOWLEDGE, DRIVER      FEATURES_OK          DRIVER_OK
//!   reset ─────────────────────► set up ───────► queues ──────────► live ──(device gives up)──► needs reset
//!     ▲        features are          │   queues are    │               │ ▲                          │
//!     │        negotiated            │   laid out      │         pause │ │ resume                   │
//!     │                              │                 │               ▼ │                          │
//!     └───────── status 0 ───────────┴─────────────────┴──────────── paused ────────────────────────┘
//! ```
//!
//! Registers are only taken in the state they belong to; anything else the guest writes is ignored. The machine does no I/O of its own: it starts
//! and stops a [`Device`]. What can fail is a start, and the guest sees `DEVICE_NEEDS_RESET`.

use std::io;
use std::sync::Arc;

use crate::saved::SavedDevice;
use crate::worker::Failure;
use crate::{Confine, Device, Event, GuestMemory, Irq, Queue, QueueState, Resources, StartError};

/// Bytes of address space a transport takes.
pub const WINDOW_BYTES: u64 = 0x1000;
/// The register that brings a device up, and down: writing it starts and stops the device.
pub const STATUS: u64 = 0x070;
/// The register a driver kicks; an ioeventfd per queue belongs here, matching the queue's index.
pub const QUEUE_NOTIFY: u64 = 0x050;

const MAGIC: u32 = u32::from_le_bytes(*b"virt");
const VERSION: u32 = 2;
const VENDOR: u32 = u32::from_le_bytes(*b"husk");
const CONFIG: u64 = 0x100;

const ACKNOWLEDGE: u32 = 1;
const DRIVER: u32 = 2;
const DRIVER_OK: u32 = 4;
const FEATURES_OK: u32 = 8;
const NEEDS_RESET: u32 = 64;
const FAILED: u32 = 128;
/// What a driver may set.
const STATUS_BITS: u32 = ACKNOWLEDGE | DRIVER | DRIVER_OK | FEATURES_OK | FAILED;

const FEATURE_INDIRECT_DESCRIPTORS: u64 = 1 << 28;
const FEATURE_EVENT_INDEX: u64 = 1 << 29;
const FEATURE_VERSION_1: u64 = 1 << 32;
/// Offered for every device; the last one a driver must take.
const TRANSPORT_FEATURES: u64 =
    FEATURE_INDIRECT_DESCRIPTORS | FEATURE_EVENT_INDEX | FEATURE_VERSION_1;

/// A device on the bus, with its registers.
#[derive(Debug)]
pub struct Transport {
    device: Box<dyn Device>,
    memory: Arc<GuestMemory>,
    irq: Arc<Irq>,
    confine: Confine,
    failure: Arc<Failure>,
    kicks: Vec<Event>,
    registers: Registers,
    /// Where the device was stopped, while it is paused.
    paused: Option<SavedDevice>,
}

/// What the driver has told so far.
#[derive(Debug, Default)]
struct Registers {
    status: u32,
    features: u64,
    device_features_select: u32,
    driver_features_select: u32,
    queue_select: u32,
    queues: Vec<QueueRegisters>,
}

#[derive(Clone, Copy, Debug, Default)]
struct QueueRegisters {
    state: QueueState,
    ready: bool,
}

impl Transport {
    /// A transport after reset. `confine` is for the device's threads.
    pub fn new(
        device: Box<dyn Device>,
        memory: Arc<GuestMemory>,
        irq: Arc<Irq>,
        confine: Confine,
    ) -> io::Result<Self> {
        let queues = device.traits().queue_sizes.len();
        let kicks = (0..queues)
            .map(|_| Event::new())
            .collect::<io::Result<_>>()?;
        let mut transport = Self {
            device,
            memory,
            irq,
            confine,
            failure: Arc::default(),
            kicks,
            registers: Registers::default(),
            paused: None,
        };
        transport.reset();
        Ok(transport)
    }

    /// One event per queue, to be signalled when the driver writes its index to [`QUEUE_NOTIFY`].
    #[must_use]
    pub fn kicks(&self) -> &[Event] {
        &self.kicks
    }

    /// The device's interrupt.
    #[must_use]
    pub fn irq(&self) -> &Irq {
        &self.irq
    }

    /// Stops a live device and keeps where it was. Allowed in any state, when no vCPU runs.
    pub fn pause(&mut self) {
        if let Some(stopped) = self.device.stop() {
            for (registers, state) in self.registers.queues.iter_mut().zip(stopped.queues) {
                if let Some(state) = state {
                    registers.state = state;
                }
            }
            self.paused = Some(stopped.saved);
        }
    }

    /// Starts a device that was live when it was paused.
    pub fn resume(&mut self) {
        if let Some(saved) = self.paused.take() {
            self.start(saved);
        }
    }

    // === registers ===

    /// A read of the window at `offset`. What is not there reads as 0.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        if let Some(offset) = offset.checked_sub(CONFIG) {
            self.device.read_config(offset, data);
            return;
        }
        match <&mut [u8; 4]>::try_from(&mut *data) {
            Ok(word) => *word = self.read_register(offset).to_le_bytes(),
            Err(_) => data.fill(0),
        }
    }

    /// A write to the window at `offset`. What makes no sense there is ignored.
    pub fn write(&mut self, offset: u64, data: &[u8]) {
        if let Some(offset) = offset.checked_sub(CONFIG) {
            if self.registers.status & DRIVER != 0 {
                self.device.write_config(offset, data);
            }
            return;
        }
        if let Ok(word) = <[u8; 4]>::try_from(data) {
            self.write_register(offset, u32::from_le_bytes(word));
        }
    }

    fn read_register(&self, offset: u64) -> u32 {
        match offset {
            0x000 => MAGIC,
            0x004 => VERSION,
            0x008 => self.device.traits().id,
            0x00c => VENDOR,
            0x010 => half(self.offered(), self.registers.device_features_select),
            0x034 => self.selected_size_max().into(),
            0x044 => self.selected().is_some_and(|queue| queue.ready).into(),
            0x060 => self.irq.status(),
            STATUS => self.status(),
            // There is no shared memory region: its length reads as all ones.
            0x0b0..=0x0bc => u32::MAX,
            0x0fc => self.device.config_generation(),
            _ => 0,
        }
    }

    fn write_register(&mut self, offset: u64, value: u32) {
        match offset {
            0x014 => self.registers.device_features_select = value,
            0x020 => self.accept_features(value),
            0x024 => self.registers.driver_features_select = value,
            0x030 => self.registers.queue_select = value,
            0x038 | 0x080..=0x0a4 => self.lay_out_queue(offset, value),
            0x044 => self.set_ready(value == 1),
            QUEUE_NOTIFY => self.kick(value),
            0x064 => self.irq.acknowledge(value),
            STATUS => self.set_status(value),
            _ => {}
        }
    }

    // === status ===

    fn status(&self) -> u32 {
        let failed = if self.failure.is_raised() {
            NEEDS_RESET
        } else {
            0
        };
        self.registers.status | failed
    }

    fn set_status(&mut self, value: u32) {
        if value == 0 {
            return self.reset();
        }
        let mut new = value & STATUS_BITS & !self.registers.status;
        if new & FEATURES_OK != 0 && !self.features_acceptable() {
            new &= !FEATURES_OK;
        }
        let ready = self.registers.status | new;
        if new & DRIVER_OK != 0 && ready & FEATURES_OK == 0 {
            new &= !DRIVER_OK;
        }
        self.registers.status |= new;
        if new & DRIVER_OK != 0 {
            self.start(SavedDevice::default());
        }
    }

    fn reset(&mut self) {
        self.device.stop();
        self.failure.clear();
        self.irq.restore(0);
        self.paused = None;
        let queues = vec![QueueRegisters::default(); self.kicks.len()];
        self.registers = Registers {
            queues,
            ..Registers::default()
        };
    }

    fn start(&mut self, saved: SavedDevice) {
        let started = self
            .resources(saved)
            .and_then(|resources| self.device.start(resources));
        if let Err(error) = started {
            self.failure.report("start", &error);
        }
    }

    fn resources(&self, saved: SavedDevice) -> Result<Resources, StartError> {
        let sizes = self.device.traits().queue_sizes;
        let queues = self.registers.queues.iter().zip(sizes).zip(&self.kicks);
        let queues = queues.map(|((registers, size_max), kick)| {
            registers
                .ready
                .then(|| self.queue(&registers.state, *size_max, kick))
                .transpose()
        });
        Ok(Resources {
            memory: Arc::clone(&self.memory),
            queues: queues.collect::<Result<_, _>>()?,
            irq: Arc::clone(&self.irq),
            features: self.registers.features,
            saved,
            confine: self.confine.clone(),
            failure: Arc::clone(&self.failure),
        })
    }

    fn queue(&self, state: &QueueState, size_max: u16, kick: &Event) -> Result<Queue, StartError> {
        let worker = |source| StartError::Worker {
            name: "queue",
            source,
        };
        let kick = kick.try_clone().map_err(worker)?;
        let event_index = self.registers.features & FEATURE_EVENT_INDEX != 0;
        let state = QueueState {
            event_index,
            ..*state
        };
        Queue::new(&state, size_max, &self.memory, kick, Arc::clone(&self.irq))
            .map_err(StartError::Queue)
    }

    // === features ===

    fn offered(&self) -> u64 {
        self.device.traits().features | TRANSPORT_FEATURES
    }

    fn accept_features(&mut self, value: u32) {
        if self.registers.status & FEATURES_OK != 0 {
            return;
        }
        let value = u64::from(value);
        let features = &mut self.registers.features;
        match self.registers.driver_features_select {
            0 => *features = *features & !u64::from(u32::MAX) | value,
            1 => *features = *features & u64::from(u32::MAX) | value << 32,
            _ => {}
        }
    }

    fn features_acceptable(&self) -> bool {
        let features = self.registers.features;
        features & !self.offered() == 0 && features & FEATURE_VERSION_1 != 0
    }

    // === queues ===

    fn selected(&self) -> Option<&QueueRegisters> {
        self.registers
            .queues
            .get(usize::try_from(self.registers.queue_select).ok()?)
    }

    fn selected_size_max(&self) -> u16 {
        let index = usize::try_from(self.registers.queue_select).unwrap_or(usize::MAX);
        self.device
            .traits()
            .queue_sizes
            .get(index)
            .copied()
            .unwrap_or(0)
    }

    /// The selected queue, while the driver may still lay it out.
    fn selected_mut(&mut self) -> Option<&mut QueueRegisters> {
        let status = self.registers.status;
        if status & FEATURES_OK == 0 || status & DRIVER_OK != 0 {
            return None;
        }
        self.registers
            .queues
            .get_mut(usize::try_from(self.registers.queue_select).ok()?)
    }

    fn lay_out_queue(&mut self, offset: u64, value: u32) {
        let Some(queue) = self.selected_mut().filter(|queue| !queue.ready) else {
            return;
        };
        let state = &mut queue.state;
        match offset {
            0x038 => state.size = u16::try_from(value).unwrap_or(0),
            0x080 => set_low(&mut state.descriptors, value),
            0x084 => set_high(&mut state.descriptors, value),
            0x090 => set_low(&mut state.available, value),
            0x094 => set_high(&mut state.available, value),
            0x0a0 => set_low(&mut state.used, value),
            0x0a4 => set_high(&mut state.used, value),
            _ => {}
        }
    }

    fn set_ready(&mut self, ready: bool) {
        if let Some(queue) = self.selected_mut() {
            queue.ready = ready;
        }
    }

    /// A kick that came as a register write, where no ioeventfd took it.
    fn kick(&self, queue: u32) {
        let kick = usize::try_from(queue)
            .ok()
            .and_then(|index| self.kicks.get(index));
        if let Some(Err(error)) = kick.map(Event::signal) {
            self.failure.report("kick", &error);
        }
    }
}

fn half(value: u64, select: u32) -> u32 {
    let bytes = value.to_le_bytes();
    match select {
        0 => u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]),
        1 => u32::from_le_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]),
        _ => 0,
    }
}

fn set_low(address: &mut u64, value: u32) {
    *address = *address & !u64::from(u32::MAX) | u64::from(value);
}

fn set_high(address: &mut u64, value: u32) {
    *address = *address & u64::from(u32::MAX) | u64::from(value) << 32;
}

#[cfg(test)]
mod tests;
