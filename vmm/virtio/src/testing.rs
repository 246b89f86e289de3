//! A driver without a guest: it lays rings out in fake memory, brings a device up through its registers, offers chains and collects them.

use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use vm_memory::{Bytes, GuestAddress};

use crate::mmio::QUEUE_NOTIFY;
use crate::{Confine, Device, Event, GuestMemory, Irq, Transport};

/// Entries of each ring; smaller than any device's limit.
pub const RING_SIZE: u16 = 16;
const MEMORY_BYTES: usize = 16 << 20;
/// Each ring's tables, then its buffers: one place for what is sent and one for what comes back per entry.
const RING_BYTES: u64 = 2 << 20;
const AVAILABLE: u64 = 0x1000;
const USED: u64 = 0x2000;
const BUFFERS: u64 = 0x10000;
const BUFFER_BYTES: u64 = 0x8000;
const WRITABLE: u16 = 2;
const NEXT: u16 = 1;
/// How long a device that does nothing is waited for.
const DEADLINE: Timespec = Timespec {
    tv_sec: 20,
    tv_nsec: 0,
};

/// A driver and the device it drives.
#[derive(Debug)]
pub struct FakeDriver {
    /// The device behind its registers.
    pub transport: Transport,
    /// Where everything lies.
    pub memory: Arc<GuestMemory>,
    rings: Vec<Ring>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Ring {
    base: u64,
    available: u16,
    used: u16,
}

impl FakeDriver {
    /// A driver that has not yet touched the device.
    #[must_use]
    pub fn new(device: Box<dyn Device>) -> Self {
        Self::confined(device, Confine::none())
    }

    /// The same, for a device whose threads confine themselves.
    #[must_use]
    pub fn confined(device: Box<dyn Device>, confine: Confine) -> Self {
        let memory = GuestMemory::from_ranges(&[(GuestAddress(0), MEMORY_BYTES)]).unwrap();
        let memory = Arc::new(memory);
        let irq = Arc::new(Irq::new(Event::new().unwrap()));
        let transport = Transport::new(device, Arc::clone(&memory), irq, confine).unwrap();
        Self {
            transport,
            memory,
            rings: Vec::new(),
        }
    }

    /// Negotiates everything offered, lays out all queues and sets `DRIVER_OK`.
    pub fn bring_up(&mut self) {
        self.negotiate();
        self.rings.clear();
        for index in 0..u32::try_from(self.transport.kicks().len()).unwrap() {
            self.lay_out(index);
        }
        self.write(0x070, 1 | 2 | 8 | 4);
    }

    /// Up to `FEATURES_OK`, accepting everything.
    pub fn negotiate(&mut self) {
        self.write(0x070, 1);
        self.write(0x070, 1 | 2);
        for select in [0, 1] {
            self.write(0x014, select);
            let offered = self.read(0x010);
            self.write(0x024, select);
            self.write(0x020, offered);
        }
        self.write(0x070, 1 | 2 | 8);
    }

    /// Status 0.
    pub fn reset(&mut self) {
        self.write(0x070, 0);
    }

    /// The status register.
    #[must_use]
    pub fn status(&self) -> u32 {
        self.read(0x070)
    }

    fn lay_out(&mut self, index: u32) {
        let base = u64::from(index) * RING_BYTES;
        let zeroes = vec![0; usize::try_from(BUFFERS).unwrap()];
        self.memory
            .write_slice(&zeroes, GuestAddress(base))
            .unwrap();
        self.write(0x030, index);
        self.write(0x038, u32::from(RING_SIZE));
        for (register, address) in [
            (0x080, base),
            (0x090, base + AVAILABLE),
            (0x0a0, base + USED),
        ] {
            self.write(register, u32::try_from(address).unwrap());
            self.write(register + 4, 0);
        }
        self.write(0x044, 1);
        self.rings.push(Ring {
            base,
            ..Ring::default()
        });
    }

    /// Offers one chain, `sent` to read and `room` bytes to write, and kicks.
    pub fn offer(&mut self, queue: usize, sent: &[u8], room: u32) {
        let ring = self.rings[queue];
        let slot = u64::from(ring.available % (RING_SIZE / 2));
        let place = ring.base + BUFFERS + slot * 2 * BUFFER_BYTES;
        self.put(place, sent);
        let parts = [
            (place, u32::try_from(sent.len()).unwrap(), 0),
            (place + BUFFER_BYTES, room, WRITABLE),
        ];
        let parts: Vec<_> = parts.into_iter().filter(|part| part.1 > 0).collect();
        let head = u16::try_from(slot).unwrap() * 2;
        for (index, (address, length, flags)) in (head..).zip(&parts) {
            let more = if usize::from(index - head) + 1 < parts.len() {
                NEXT
            } else {
                0
            };
            let at = ring.base + u64::from(index) * 16;
            self.put(at, &address.to_le_bytes());
            self.put(at + 8, &length.to_le_bytes());
            self.put(at + 12, &(flags | more).to_le_bytes());
            self.put(at + 14, &(index + 1).to_le_bytes());
        }
        let entry = u64::from(ring.available % RING_SIZE) * 2;
        self.put(ring.base + AVAILABLE + 4 + entry, &head.to_le_bytes());
        self.rings[queue].available = ring.available.wrapping_add(1);
        self.publish(queue);
    }

    /// Claims that `count` more chains are there than are.
    pub fn lie_about_available(&mut self, queue: usize, count: u16) {
        self.rings[queue].available = self.rings[queue].available.wrapping_add(count);
        self.publish(queue);
    }

    fn publish(&mut self, queue: usize) {
        fence(Ordering::SeqCst);
        let ring = self.rings[queue];
        self.put(ring.base + AVAILABLE + 2, &ring.available.to_le_bytes());
        self.write(QUEUE_NOTIFY, u32::try_from(queue).unwrap());
    }

    /// What the device wrote into the next chain it gave back, if it has given one back.
    pub fn used(&mut self, queue: usize) -> Option<Vec<u8>> {
        let ring = self.rings[queue];
        let wanted = ring.base + AVAILABLE + 4 + u64::from(RING_SIZE) * 2;
        self.put(wanted, &ring.used.to_le_bytes());
        fence(Ordering::SeqCst);
        let index = u16::from_le_bytes(self.get(ring.base + USED + 2));
        if index == ring.used {
            return None;
        }
        let entry = ring.base + USED + 4 + u64::from(ring.used % RING_SIZE) * 8;
        let head = u64::from(u32::from_le_bytes(self.get(entry)));
        let length = usize::try_from(u32::from_le_bytes(self.get(entry + 4))).unwrap();
        self.rings[queue].used = ring.used.wrapping_add(1);
        let mut bytes = vec![0; length];
        let place = ring.base + BUFFERS + head * BUFFER_BYTES + BUFFER_BYTES;
        self.memory
            .read_slice(&mut bytes, GuestAddress(place))
            .unwrap();
        Some(bytes)
    }

    /// Waits for the next chain the device gives back.
    pub fn wait_used(&mut self, queue: usize) -> Vec<u8> {
        loop {
            if let Some(bytes) = self.used(queue) {
                return bytes;
            }
            let line = self.transport.irq().line();
            let ready = poll(&mut [PollFd::new(line, PollFlags::IN)], Some(&DEADLINE)).unwrap();
            assert_eq!(ready, 1, "the device raised no interrupt");
            line.clear().unwrap();
        }
    }

    /// Offers a chain and waits until it comes back.
    pub fn exchange(&mut self, queue: usize, sent: &[u8], room: u32) -> Vec<u8> {
        self.offer(queue, sent, room);
        self.wait_used(queue)
    }

    /// Waits until the device has given up.
    pub fn wait_needs_reset(&self) {
        while self.status() & 64 == 0 {
            std::thread::yield_now();
        }
    }

    /// Reads a register.
    #[must_use]
    pub fn read(&self, offset: u64) -> u32 {
        let mut word = [0; 4];
        self.transport.read(offset, &mut word);
        u32::from_le_bytes(word)
    }

    /// Writes a register.
    pub fn write(&mut self, offset: u64, value: u32) {
        self.transport.write(offset, &value.to_le_bytes());
    }

    fn put(&self, address: u64, bytes: &[u8]) {
        self.memory
            .write_slice(bytes, GuestAddress(address))
            .unwrap();
    }

    fn get<const N: usize>(&self, address: u64) -> [u8; N] {
        let mut bytes = [0; N];
        self.memory
            .read_slice(&mut bytes, GuestAddress(address))
            .unwrap();
        bytes
    }
}
