//! Virtio devices behind virtio-mmio: models only. This crate cannot name KVM, and its tests need none.
//!
//! The life of a buffer, and the order of the modules:
//!
//! ```text
//!  guest driver ─ kick ─► eventfd ─► worker ─► queue ─► chain ─► the device ─► queue.complete ─► irq ─► guest
//!       │                                                            ▲
//!       └─ registers ─► mmio ─ DRIVER_OK ─► Device::start ───────────┘
//! ```
//!
//! Nothing after [`chain`] sees a descriptor, nothing before a device does I/O, and [`mmio`] is on the set-up path only.
//! A device is data plus [`Device::start`] and [`Device::stop`]: stopped, it is plain state ([`saved`]).

/// One checked descriptor chain as a stream to read and a stream to write.
pub mod chain;
/// The trait of all devices.
pub mod device;
/// An eventfd.
pub mod event;
/// How a device interrupts the guest.
pub mod irq;
/// The register machine of virtio-mmio.
pub mod mmio;
/// A virtqueue: take the next chain, complete it.
pub mod queue;
/// The state of stopped devices.
pub mod saved;
/// The thread that runs a started device.
pub mod worker;

/// Console: the kernel's and the agent's log.
pub mod console;
/// Files of the host by FUSE.
pub mod fs;
/// Memory that comes and goes.
pub mod mem;
/// Entropy.
pub mod rng;
/// Stream sockets between host and guest.
pub mod vsock;

/// A driver without a guest, for tests and fuzzing.
#[cfg(any(test, feature = "testing"))]
#[expect(
    clippy::unwrap_used,
    reason = "a test whose fake driver fails has failed"
)]
pub mod testing;

pub use chain::Chain;
pub use device::{Confine, Device, Resources, StartError, Stopped, Traits};
pub use event::Event;
pub use irq::Irq;
pub use mmio::Transport;
pub use queue::{Queue, QueueError, QueueState};

/// Guest memory as every device sees it.
pub type GuestMemory = vm_memory::GuestMemoryMmap<()>;
