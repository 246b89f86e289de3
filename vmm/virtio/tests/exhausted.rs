//! A host without descriptors: a device that could not be started keeps what it has and starts
//! later. A process of its own, for the limit.

#![expect(clippy::unwrap_used, reason = "a test whose set-up fails has failed")]

use std::io::{self, Write};
use std::sync::{Arc, Mutex};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use vm_memory::GuestAddress;
use vmm_virtio::console::Console;
use vmm_virtio::mem::{BLOCK_BYTES, Backing, Mem};
use vmm_virtio::saved::SavedDevice;
use vmm_virtio::{
    Confine, Device, Event, GuestMemory, Irq, Queue, QueueState, Resources, StartError,
};

#[derive(Clone, Debug, Default)]
struct Sink(Arc<Mutex<Vec<u8>>>);

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[derive(Debug)]
struct Nothing;

impl Backing for Nothing {
    fn plug(&mut self, _: std::ops::Range<u64>) -> io::Result<()> {
        Ok(())
    }

    fn unplug(&mut self, _: std::ops::Range<u64>) -> io::Result<()> {
        Ok(())
    }
}

fn resources(queues: usize) -> Resources {
    let memory = Arc::new(GuestMemory::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap());
    let irq = Arc::new(Irq::new(Event::new().unwrap()));
    let state = QueueState {
        size: 16,
        descriptors: 0x1000,
        available: 0x2000,
        used: 0x3000,
        ..QueueState::default()
    };
    let queue = || {
        let kick = Event::new().unwrap();
        Some(Queue::new(&state, 16, &memory, kick, Arc::clone(&irq)).unwrap())
    };
    Resources {
        queues: (0..queues).map(|_| queue()).collect(),
        memory: Arc::clone(&memory),
        irq: Arc::clone(&irq),
        features: 0,
        saved: SavedDevice::Fresh,
        confine: Confine::none(),
        failure: Arc::default(),
    }
}

/// Starts the device where no descriptor is to be had, and again where there are some.
fn starts_later(device: &mut dyn Device) {
    let queues = device.traits().queue_sizes.len();
    let (refused, granted) = (resources(queues), resources(queues));
    let limit = getrlimit(Resource::Nofile);
    let none = Rlimit {
        current: Some(0),
        ..limit
    };
    setrlimit(Resource::Nofile, none).unwrap();
    let started = device.start(refused);
    setrlimit(Resource::Nofile, limit).unwrap();
    assert!(
        matches!(started, Err(StartError::Worker { .. })),
        "{started:?}"
    );
    assert!(device.stop().is_none());
    device.start(granted).unwrap();
    assert!(device.stop().is_some());
}

#[test]
fn device_that_could_not_start_starts_later() {
    starts_later(&mut Console::new(Sink::default()));
    let region = 4 << 30..(4 << 30) + 4 * BLOCK_BYTES;
    starts_later(&mut Mem::new(region, Box::new(Nothing)).unwrap().0);
    starts_later(&mut vmm_virtio::vsock::Vsock::new(3, vec![1024]).unwrap().0);
    starts_later(&mut vmm_virtio::rng::Rng::default());
}
