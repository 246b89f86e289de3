//! A driver for virtio-mmio devices that does as it is told, right or wrong.
//!
//! Each slot has a megabyte of memory at [`memory_of`]: three queues of 64 KiB, then a request, then room for its answer.

use crate::cpu;

const BASE: u64 = 0xd000_0000;
const WINDOW: u64 = 0x1000;
const MAGIC: u32 = u32::from_le_bytes(*b"virt");

/// The slots with their devices.
pub(crate) const VSOCK: u8 = 0;
pub(crate) const FS: u8 = 1;
pub(crate) const CONSOLE: u8 = 2;
pub(crate) const RNG: u8 = 3;
pub(crate) const MEM: u8 = 4;
/// How many there are.
pub(crate) const SLOTS: u8 = 5;

/// Registers (virtio 1.2, section 4.2.2).
pub(crate) const DEVICE_FEATURES: u64 = 0x010;
pub(crate) const DEVICE_FEATURES_SELECT: u64 = 0x014;
pub(crate) const DRIVER_FEATURES: u64 = 0x020;
pub(crate) const DRIVER_FEATURES_SELECT: u64 = 0x024;
pub(crate) const QUEUE_SELECT: u64 = 0x030;
pub(crate) const QUEUE_SIZE_MAX: u64 = 0x034;
pub(crate) const QUEUE_SIZE: u64 = 0x038;
pub(crate) const QUEUE_READY: u64 = 0x044;
pub(crate) const QUEUE_NOTIFY: u64 = 0x050;
pub(crate) const STATUS: u64 = 0x070;
pub(crate) const QUEUE_DESCRIPTORS: u64 = 0x080;
pub(crate) const QUEUE_AVAILABLE: u64 = 0x090;
pub(crate) const QUEUE_USED: u64 = 0x0a0;
pub(crate) const CONFIG: u64 = 0x100;

/// Bits of the status.
pub(crate) const ACKNOWLEDGE_DRIVER: u32 = 1 | 2;
pub(crate) const DRIVER_OK: u32 = 4;
pub(crate) const FEATURES_OK: u32 = 8;
pub(crate) const NEEDS_RESET: u32 = 64;

/// Features: indirect descriptors, and version 1, without which nothing goes.
const FEATURES: [u32; 2] = [1 << 28, 1];

/// Flags of a descriptor.
pub(crate) const NEXT: u16 = 1;
pub(crate) const WRITE: u16 = 2;
pub(crate) const INDIRECT: u16 = 4;

/// Entries of the queues as this driver lays them out.
pub(crate) const SIZE: u16 = 16;

/// Queues of a device, by slot.
pub(crate) fn queues(slot: u8) -> u32 {
    match slot {
        VSOCK => 3,
        FS | CONSOLE => 2,
        _ => 1,
    }
}

/// The queue on which a device takes requests.
pub(crate) fn request_queue(slot: u8) -> usize {
    usize::from(slot < RNG)
}

/// The memory that a slot's driver uses.
pub(crate) fn memory_of(slot: u8) -> u64 {
    0x200_0000 + (u64::from(slot) << 20)
}

/// Where requests are written.
pub(crate) fn request_of(slot: u8) -> u64 {
    memory_of(slot) + 0x4_0000
}

/// Where answers are expected.
pub(crate) fn answer_of(slot: u8) -> u64 {
    memory_of(slot) + 0x8_0000
}

/// The room for an answer.
pub(crate) const ANSWER_MAX: u32 = 0x8_0000;

/// A device's registers.
#[derive(Clone, Copy)]
pub(crate) struct Device {
    pub(crate) slot: u8,
}

/// What a driver says of a queue.
#[derive(Clone, Copy)]
pub(crate) struct Layout {
    pub(crate) size: u32,
    pub(crate) descriptors: u64,
    pub(crate) available: u64,
    pub(crate) used: u64,
}

impl Layout {
    /// The honest one, of `size` entries.
    pub(crate) fn honest(slot: u8, queue: u32, size: u16) -> Self {
        let at = memory_of(slot) + u64::from(queue) * 0x1_0000;
        Self {
            size: size.into(),
            descriptors: at,
            available: at + 0x4000,
            used: at + 0x8000,
        }
    }
}

impl Device {
    /// The device in a slot, if there is one.
    pub(crate) fn at(slot: u8) -> Option<Self> {
        let device = Self { slot };
        (device.get(0) == MAGIC).then_some(device)
    }

    /// All there are.
    pub(crate) fn all() -> impl Iterator<Item = Self> {
        (0..SLOTS).filter_map(Self::at)
    }

    /// The physical address of a register.
    pub(crate) fn address(self, offset: u64) -> u64 {
        BASE + u64::from(self.slot) * WINDOW + offset
    }

    pub(crate) fn get(self, offset: u64) -> u32 {
        cpu::read32(self.address(offset))
    }

    pub(crate) fn set(self, offset: u64, value: u32) {
        cpu::write32(self.address(offset), value);
    }

    pub(crate) fn reset(self) {
        self.set(STATUS, 0);
    }

    pub(crate) fn is_broken(self) -> bool {
        self.get(STATUS) & NEEDS_RESET != 0
    }

    pub(crate) fn kick(self, queue: u32) {
        self.set(QUEUE_NOTIFY, queue);
    }

    /// From reset to where queues are laid out.
    pub(crate) fn negotiate(self) {
        self.reset();
        self.set(STATUS, ACKNOWLEDGE_DRIVER);
        for (select, features) in (0..).zip(FEATURES) {
            self.set(DRIVER_FEATURES_SELECT, select);
            self.set(DRIVER_FEATURES, features);
        }
        self.set(STATUS, ACKNOWLEDGE_DRIVER | FEATURES_OK);
    }

    /// Tells where a queue is.
    pub(crate) fn lay_out(self, queue: u32, layout: Layout) {
        self.set(QUEUE_SELECT, queue);
        self.set(QUEUE_SIZE, layout.size);
        for (register, address) in [
            (QUEUE_DESCRIPTORS, layout.descriptors),
            (QUEUE_AVAILABLE, layout.available),
            (QUEUE_USED, layout.used),
        ] {
            self.set(register, address as u32);
            self.set(register + 4, (address >> 32) as u32);
        }
        self.set(QUEUE_READY, 1);
    }

    /// Lets it run.
    pub(crate) fn go(self) {
        self.set(STATUS, ACKNOWLEDGE_DRIVER | FEATURES_OK | DRIVER_OK);
    }

    /// From whatever it is to a device that runs with honest queues of `size` entries, or as many as it knows.
    pub(crate) fn bring_up(self, size: u16) -> Live {
        self.negotiate();
        let ring = |queue| {
            self.set(QUEUE_SELECT, queue);
            let size_max = self.get(QUEUE_SIZE_MAX).clamp(1, 1 << 15) as u16;
            let layout = Layout::honest(self.slot, queue, size.min(size_max));
            cpu::fill(layout.descriptors, 0, 0x1_0000);
            if queue < queues(self.slot) {
                self.lay_out(queue, layout);
            }
            Ring::new(layout)
        };
        let rings = [ring(0), ring(1), ring(2)];
        self.go();
        Live {
            device: self,
            rings,
        }
    }

    /// Whether it does its work when it is driven honestly.
    pub(crate) fn works(self) -> bool {
        let mut live = self.bring_up(SIZE);
        let queue = request_queue(self.slot);
        match self.slot {
            VSOCK => {
                live.rings[0].offer_buffer(0, answer_of(VSOCK), 4096, WRITE);
                let packet = crate::socket::Packet::request(77, 1);
                live.ask(queue, &packet.bytes(), 0).is_some() && live.take(0).is_some()
            }
            FS => crate::share::Share::of(live).init(),
            CONSOLE => live.ask(queue, b"", 0).is_some(),
            RNG => live.ask(queue, b"", 64) == Some(64),
            _ => live.ask(queue, &[3; 24], 10) == Some(10),
        }
    }
}

/// A descriptor.
#[derive(Clone, Copy, Default)]
pub(crate) struct Descriptor {
    pub(crate) address: u64,
    pub(crate) length: u32,
    pub(crate) flags: u16,
    pub(crate) next: u16,
}

impl Descriptor {
    /// Writes it into a table.
    pub(crate) fn put(self, table: u64, index: u64) {
        let at = table + index * 16;
        cpu::write64(at, self.address);
        cpu::write32(at + 8, self.length);
        cpu::write16(at + 12, self.flags);
        cpu::write16(at + 14, self.next);
    }
}

/// A queue, from the driver's side.
#[derive(Clone, Copy)]
pub(crate) struct Ring {
    pub(crate) layout: Layout,
    /// The next entry of the available ring.
    pub(crate) next: u16,
    /// The next entry of the used ring.
    seen: u16,
}

impl Ring {
    pub(crate) fn new(layout: Layout) -> Self {
        Self {
            layout,
            next: 0,
            seen: 0,
        }
    }

    pub(crate) fn describe(&self, index: u16, descriptor: Descriptor) {
        descriptor.put(self.layout.descriptors, index.into());
    }

    /// Puts a head into the available ring.
    pub(crate) fn offer(&mut self, head: u16) {
        let entry = u64::from(self.next) % u64::from(self.layout.size);
        cpu::write16(self.layout.available + 4 + entry * 2, head);
        self.next = self.next.wrapping_add(1);
        self.publish(self.next);
    }

    /// Says that the available ring is filled up to here.
    pub(crate) fn publish(&self, index: u16) {
        cpu::write16(self.layout.available + 2, index);
    }

    /// Describes one buffer and offers it.
    pub(crate) fn offer_buffer(&mut self, index: u16, address: u64, length: u32, flags: u16) {
        self.describe(
            index,
            Descriptor {
                address,
                length,
                flags,
                next: 0,
            },
        );
        self.offer(index);
    }

    pub(crate) fn used_index(&self) -> u16 {
        cpu::read16(self.layout.used + 2)
    }

    /// The next chain that has come back: its head and how much of it was written.
    pub(crate) fn take(&mut self) -> Option<(u32, u32)> {
        if self.used_index() == self.seen {
            return None;
        }
        let entry = u64::from(self.seen) % u64::from(self.layout.size);
        self.seen = self.seen.wrapping_add(1);
        let at = self.layout.used + 4 + entry * 8;
        Some((cpu::read32(at), cpu::read32(at + 4)))
    }

    /// How many chains the device has and has not given back.
    pub(crate) fn out(&self) -> u16 {
        self.next.wrapping_sub(self.used_index())
    }
}

/// A device that runs.
#[derive(Clone, Copy)]
pub(crate) struct Live {
    pub(crate) device: Device,
    pub(crate) rings: [Ring; 3],
}

impl Live {
    /// Sends one request and waits for its answer of at most `room` bytes; how many there are.
    pub(crate) fn ask(&mut self, queue: usize, request: &[u8], room: u32) -> Option<u32> {
        let slot = self.device.slot;
        cpu::copy_in(request_of(slot), request);
        self.ask_in_place(queue, request.len() as u32, room)
    }

    /// The same for a request that is at its place already.
    pub(crate) fn ask_in_place(&mut self, queue: usize, length: u32, room: u32) -> Option<u32> {
        let slot = self.device.slot;
        let ring = &mut self.rings[queue];
        let flags = if room > 0 { NEXT } else { 0 };
        let request = Descriptor {
            address: request_of(slot),
            length,
            flags,
            next: 1,
        };
        let answer = Descriptor {
            address: answer_of(slot),
            length: room,
            flags: WRITE,
            next: 0,
        };
        if length > 0 || room == 0 {
            ring.describe(0, request);
            ring.describe(1, answer);
        } else {
            ring.describe(0, answer);
        }
        ring.offer(0);
        self.device.kick(queue as u32);
        self.take(queue).map(|(_, written)| written)
    }

    /// Waits for a chain to come back; from a device that has given up none comes.
    pub(crate) fn take(&mut self, queue: usize) -> Option<(u32, u32)> {
        for count in 0..cpu::PATIENCE {
            if let Some(taken) = self.rings[queue].take() {
                return Some(taken);
            }
            if count % cpu::LOOKS_PER_EXIT == 0 && self.device.is_broken() {
                return None;
            }
            core::hint::spin_loop();
        }
        None
    }

    /// Waits until the device has given back all it has of a queue, or has given up.
    pub(crate) fn settle(&self, queue: usize) {
        const LOOKS: u32 = 40;
        for _ in 0..LOOKS {
            if self.rings[queue].out() == 0 || self.device.is_broken() {
                return;
            }
        }
    }
}
