//! A device's interrupt line: the only way a device speaks up.
//!
//! virtio-mmio has one line per device and a register that says why it was raised (virtio 1.2, section 4.2.2): bit 0, a queue has used
//! buffers; bit 1, the configuration changed. The line itself is an eventfd, so this crate need not know what turns it into an interrupt.

use std::io;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::Event;

const USED_BUFFER: u32 = 1 << 0;
const CONFIGURATION: u32 = 1 << 1;

/// The interrupt of one device.
#[derive(Debug)]
pub struct Irq {
    status: AtomicU32,
    line: Event,
}

impl Irq {
    /// An interrupt that writes `line` when it is raised.
    #[must_use]
    pub fn new(line: Event) -> Self {
        Self {
            status: AtomicU32::new(0),
            line,
        }
    }

    /// Tells the driver that some queue has used buffers.
    pub fn used_buffer(&self) -> io::Result<()> {
        self.raise(USED_BUFFER)
    }

    /// Tells the driver to read the configuration space again.
    pub fn configuration(&self) -> io::Result<()> {
        self.raise(CONFIGURATION)
    }

    /// The eventfd to connect to the interrupt controller.
    #[must_use]
    pub fn line(&self) -> &Event {
        &self.line
    }

    /// The register `InterruptStatus`.
    #[must_use]
    pub fn status(&self) -> u32 {
        self.status.load(Ordering::SeqCst)
    }

    /// The register `InterruptACK`.
    pub fn acknowledge(&self, bits: u32) {
        self.status.fetch_and(!bits, Ordering::SeqCst);
    }

    /// Sets the register as it was saved, without raising the line.
    pub fn restore(&self, status: u32) {
        self.status.store(status, Ordering::SeqCst);
    }

    fn raise(&self, bit: u32) -> io::Result<()> {
        self.status.fetch_or(bit, Ordering::SeqCst);
        self.line.signal()
    }
}
