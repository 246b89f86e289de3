//! A guest's driver for the three queues, as far as the tests need one: rings in memory, one guest socket.

use std::sync::Arc;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use vm_memory::{Bytes, GuestAddress};

use super::super::packet::{HEADER_BYTES, HOST_CID, Header, Operation, Shutdown, TYPE_STREAM};
use super::super::{QUEUE_SIZES, Vsock};
use super::GUEST_PORT;
use crate::saved::SavedDevice;
use crate::vsock::Host;
use crate::worker::Failure;
use crate::{Confine, Device, Event, GuestMemory, Irq, Queue, QueueState, Resources};

pub(super) const CID: u64 = 3;
pub(super) const PORT: u32 = 1024;

const MEMORY_BYTES: usize = 64 << 20;
/// Each ring's tables, then its buffers.
const RING_BYTES: u64 = 16 << 20;
const AVAILABLE: u64 = 0x1000;
const USED: u64 = 0x2000;
const BUFFERS: u64 = 0x10000;
const BUFFER_BYTES: u64 = 0x10000;
const WRITABLE: u16 = 2;
const NEXT: u16 = 1;
/// How long a device that does nothing is waited for.
const DEADLINE: Timespec = Timespec {
    tv_sec: 20,
    tv_nsec: 0,
};

/// One ring from the driver's side. A chain's descriptors follow each other, so that a chain of `n` takes `n` places.
struct Ring {
    base: u64,
    size: u16,
    kick: Event,
    state: QueueState,
    next_descriptor: u16,
    available: u16,
    used: u16,
}

impl Ring {
    fn new(index: u64, size: u16) -> Self {
        let base = index * RING_BYTES;
        Self {
            base,
            size,
            kick: Event::new().unwrap(),
            state: QueueState {
                size,
                descriptors: base,
                available: base + AVAILABLE,
                used: base + USED,
                event_index: true,
                ..QueueState::default()
            },
            next_descriptor: 0,
            available: 0,
            used: 0,
        }
    }

    fn buffer(&self, descriptor: u16) -> u64 {
        self.base + BUFFERS + u64::from(descriptor) * BUFFER_BYTES
    }

    /// Offers a chain of `lens` bytes each; returns the addresses of its buffers. `at` overrides where the first lies.
    fn offer(
        &mut self,
        memory: &GuestMemory,
        lens: &[u32],
        flags: u16,
        at: Option<u64>,
    ) -> Vec<u64> {
        let count = u16::try_from(lens.len()).unwrap();
        if self.next_descriptor + count > self.size {
            self.next_descriptor = 0;
        }
        let head = self.next_descriptor;
        let mut addresses = Vec::new();
        for (descriptor, len) in (head..).zip(lens) {
            let address = at.unwrap_or_else(|| self.buffer(descriptor));
            let last = descriptor + 1 == head + count;
            let flags = if last { flags } else { flags | NEXT };
            let entry = self.base + u64::from(descriptor) * 16;
            put(memory, entry, &address.to_le_bytes());
            put(memory, entry + 8, &len.to_le_bytes());
            put(memory, entry + 12, &flags.to_le_bytes());
            put(memory, entry + 14, &(descriptor + 1).to_le_bytes());
            addresses.push(address);
        }
        self.next_descriptor += count;
        let place = u64::from(self.available % self.size) * 2;
        put(
            memory,
            self.base + AVAILABLE + 4 + place,
            &head.to_le_bytes(),
        );
        self.available = self.available.wrapping_add(1);
        addresses
    }

    fn publish(&self, memory: &GuestMemory) {
        std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
        put(
            memory,
            self.base + AVAILABLE + 2,
            &self.available.to_le_bytes(),
        );
        self.kick.signal().unwrap();
    }

    /// The next chain the device has given back: its head and length. Asks for an interrupt with the one after it.
    fn take(&mut self, memory: &GuestMemory) -> Option<(u16, usize)> {
        let event = self.base + AVAILABLE + 4 + u64::from(self.size) * 2;
        put(memory, event, &self.used.to_le_bytes());
        std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
        let index = u16::from_le_bytes(get(memory, self.base + USED + 2));
        if index == self.used {
            return None;
        }
        let entry = self.base + USED + 4 + u64::from(self.used % self.size) * 8;
        self.used = self.used.wrapping_add(1);
        let head = u32::from_le_bytes(get(memory, entry));
        let len = u32::from_le_bytes(get(memory, entry + 4));
        Some((u16::try_from(head).unwrap(), usize::try_from(len).unwrap()))
    }

    /// The first `len` bytes of a chain's buffers.
    fn read(&self, memory: &GuestMemory, head: u16, len: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut descriptor = head;
        while bytes.len() < len {
            let entry = self.base + u64::from(descriptor) * 16;
            let address = u64::from_le_bytes(get(memory, entry));
            let size = u32::from_le_bytes(get(memory, entry + 8));
            let here = (len - bytes.len()).min(usize::try_from(size).unwrap());
            let mut piece = vec![0; here];
            memory
                .read_slice(&mut piece, GuestAddress(address))
                .unwrap();
            bytes.extend(piece);
            descriptor += 1;
        }
        bytes
    }
}

/// A device, its host end, and a guest that has one socket.
pub(super) struct Machine {
    pub(super) device: Vsock,
    pub(super) host: Host,
    /// The socket's `fwd_cnt`.
    pub(super) forwarded: u32,
    memory: Arc<GuestMemory>,
    rings: [Ring; 3],
    irq: Arc<Irq>,
    failure: Arc<Failure>,
}

impl Machine {
    pub(super) fn new() -> Self {
        let (device, host) = Vsock::new(u32::try_from(CID).unwrap(), vec![PORT]).unwrap();
        let memory = GuestMemory::from_ranges(&[(GuestAddress(0), MEMORY_BYTES)]).unwrap();
        Self {
            device,
            host,
            forwarded: 0,
            memory: Arc::new(memory),
            rings: [0, 1, 2].map(|index| {
                Ring::new(
                    u64::try_from(index).unwrap(),
                    QUEUE_SIZES[usize::try_from(index).unwrap()],
                )
            }),
            irq: Arc::new(Irq::new(Event::new().unwrap())),
            failure: Arc::default(),
        }
    }

    pub(super) fn resources(&self, saved: SavedDevice) -> Resources {
        let queue = |ring: &Ring| {
            let kick = ring.kick.try_clone().unwrap();
            Queue::new(
                &ring.state,
                ring.size,
                &self.memory,
                kick,
                Arc::clone(&self.irq),
            )
            .unwrap()
        };
        Resources {
            memory: Arc::clone(&self.memory),
            queues: self.rings.iter().map(|ring| Some(queue(ring))).collect(),
            irq: Arc::clone(&self.irq),
            features: 0,
            saved,
            confine: Confine::none(),
            failure: Arc::clone(&self.failure),
        }
    }

    pub(super) fn start(&mut self, saved: SavedDevice) {
        self.failure.clear();
        self.device.start(self.resources(saved)).unwrap();
    }

    pub(super) fn stop(&mut self) -> SavedDevice {
        let stopped = self.device.stop().unwrap();
        for (ring, state) in self.rings.iter_mut().zip(stopped.queues) {
            ring.state = state.unwrap();
        }
        stopped.saved
    }

    pub(super) fn pause_and_resume(&mut self) {
        let saved = self.stop();
        self.start(saved);
    }

    // === tx ===

    pub(super) fn send(&mut self, operation: Operation, payload: &[u8]) {
        let header = self.header(operation);
        self.send_packet(header, payload, &[44]);
    }

    pub(super) fn send_shutdown(&mut self, directions: Shutdown) {
        let header = Header {
            flags: directions.flags(),
            ..self.header(Operation::Shutdown)
        };
        self.send_packet(header, &[], &[]);
    }

    pub(super) fn send_in_pieces(&mut self, operation: Operation, payload: &[u8], cuts: &[usize]) {
        let header = self.header(operation);
        self.send_packet(header, payload, cuts);
    }

    fn header(&self, operation: Operation) -> Header {
        Header {
            src_cid: CID,
            dst_cid: HOST_CID,
            src_port: GUEST_PORT,
            dst_port: PORT,
            socket_type: TYPE_STREAM,
            op: operation as u16,
            buf_alloc: 256 * 1024,
            fwd_cnt: self.forwarded,
            ..Header::default()
        }
    }

    /// Sends one packet in pieces of `cuts` bytes and a last one of what is left.
    fn send_packet(&mut self, mut header: Header, payload: &[u8], cuts: &[usize]) {
        header.len = u32::try_from(payload.len()).unwrap();
        let mut bytes = header.to_bytes().to_vec();
        bytes.extend(payload);
        let mut pieces = Vec::new();
        let mut rest = bytes.as_slice();
        for cut in cuts {
            let (piece, after) = rest.split_at(*cut);
            pieces.push(piece);
            rest = after;
        }
        if !rest.is_empty() {
            pieces.push(rest);
        }
        self.send_pieces(&pieces);
    }

    pub(super) fn send_raw(&mut self, bytes: &[u8]) {
        self.send_pieces(&[bytes]);
    }

    fn send_pieces(&mut self, pieces: &[&[u8]]) {
        let lens: Vec<u32> = pieces
            .iter()
            .map(|piece| u32::try_from(piece.len()).unwrap())
            .collect();
        // Half the ring at most is under way, so a buffer is not used again before its time.
        while self.rings[1].available.wrapping_sub(self.rings[1].used) >= self.rings[1].size / 4 {
            self.wait(|machine| machine.rings[1].take(&machine.memory));
        }
        let addresses = self.rings[1].offer(&self.memory, &lens, 0, None);
        for (address, piece) in addresses.iter().zip(pieces) {
            put(&self.memory, *address, piece);
        }
        self.rings[1].publish(&self.memory);
    }

    // === rx ===

    pub(super) fn offer_room(&mut self, count: u16, bytes: u32) {
        for _ in 0..count {
            self.rings[0].offer(&self.memory, &[bytes], WRITABLE, None);
        }
        self.rings[0].publish(&self.memory);
    }

    pub(super) fn offer_room_in_pieces(&mut self, lens: &[u32]) {
        self.rings[0].offer(&self.memory, lens, WRITABLE, None);
        self.rings[0].publish(&self.memory);
    }

    pub(super) fn offer_buffer_at(&mut self, address: u64) {
        self.rings[0].offer(&self.memory, &[4096], WRITABLE, Some(address));
        self.rings[0].publish(&self.memory);
    }

    /// The next packet, with its payload.
    pub(super) fn receive(&mut self) -> (Header, Vec<u8>) {
        let (head, len) = self.wait(|machine| machine.rings[0].take(&machine.memory));
        let mut bytes = self.rings[0].read(&self.memory, head, len);
        let payload = bytes.split_off(HEADER_BYTES);
        let header = Header::from_bytes(&bytes.try_into().unwrap());
        assert_eq!(usize::try_from(header.len).unwrap(), payload.len());
        (header, payload)
    }

    /// Throws away what has come, and offers its room again.
    pub(super) fn take_all_and_offer_again(&mut self, bytes: u32) {
        while self.rings[0].take(&self.memory).is_some() {
            self.offer_room(1, bytes);
        }
    }

    // === events ===

    pub(super) fn offer_event_room(&mut self) {
        self.rings[2].offer(&self.memory, &[4], WRITABLE, None);
        self.rings[2].publish(&self.memory);
    }

    pub(super) fn event(&mut self) -> Vec<u8> {
        let (head, len) = self.wait(|machine| machine.rings[2].take(&machine.memory));
        self.rings[2].read(&self.memory, head, len)
    }

    pub(super) fn has_event(&mut self) -> bool {
        self.rings[2].take(&self.memory).is_some()
    }

    // === waiting ===

    /// Waits for the interrupt until `found` finds something.
    fn wait<T>(&mut self, mut found: impl FnMut(&mut Self) -> Option<T>) -> T {
        loop {
            if let Some(value) = found(self) {
                return value;
            }
            let line = self.irq.line();
            let mut files = [PollFd::new(line, PollFlags::IN)];
            assert_eq!(
                poll(&mut files, Some(&DEADLINE)).unwrap(),
                1,
                "no interrupt"
            );
            line.clear().unwrap();
        }
    }

    /// The device reports on the way out, after it has closed its connections.
    pub(super) fn wait_for_failure(&self) {
        while !self.failure.is_raised() {
            std::thread::yield_now();
        }
    }
}

fn put(memory: &GuestMemory, address: u64, bytes: &[u8]) {
    memory.write_slice(bytes, GuestAddress(address)).unwrap();
}

fn get<const N: usize>(memory: &GuestMemory, address: u64) -> [u8; N] {
    let mut bytes = [0; N];
    memory
        .read_slice(&mut bytes, GuestAddress(address))
        .unwrap();
    bytes
}
