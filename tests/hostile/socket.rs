//! A driver of the socket device that sends whatever packets it is given.

use crate::cpu;
use crate::transport::{Device, Live, VSOCK, WRITE, answer_of, request_of};

/// Operations (virtio 1.2, section 5.10.6).
pub(crate) const REQUEST: u16 = 1;
pub(crate) const RESPONSE: u16 = 2;
pub(crate) const RESET: u16 = 3;
pub(crate) const SHUTDOWN: u16 = 4;
pub(crate) const DATA: u16 = 5;
pub(crate) const CREDIT_UPDATE: u16 = 6;
pub(crate) const CREDIT_REQUEST: u16 = 7;

const HEADER: u32 = 44;
/// The guest's address, and the host's.
const GUEST: u64 = 3;
const HOST: u64 = 2;
/// The port on which the supervisor waits for the agent.
pub(crate) const AGENT_PORT: u32 = 1024;

/// Entries of the queues, and the distance of their buffers.
pub(crate) const ENTRIES: u16 = 128;
const TX_BYTES: u64 = 2048;
const RX_BYTES: u32 = 4096;

/// Looks at a device that takes nothing because it has no room for answers.
const STALLED: u32 = 20_000;
/// The header of a packet.
#[derive(Clone, Copy)]
pub(crate) struct Packet {
    pub(crate) src_cid: u64,
    pub(crate) dst_cid: u64,
    pub(crate) src_port: u32,
    pub(crate) dst_port: u32,
    pub(crate) len: u32,
    pub(crate) kind: u16,
    pub(crate) op: u16,
    pub(crate) flags: u32,
    pub(crate) buf_alloc: u32,
    pub(crate) fwd_cnt: u32,
}

impl Packet {
    /// A packet without fault.
    pub(crate) fn new(op: u16, src_port: u32, dst_port: u32) -> Self {
        Self {
            src_cid: GUEST,
            dst_cid: HOST,
            src_port,
            dst_port,
            len: 0,
            kind: 1,
            op,
            flags: 0,
            buf_alloc: 1 << 18,
            fwd_cnt: 0,
        }
    }

    /// Asks for a connection.
    pub(crate) fn request(src_port: u32, dst_port: u32) -> Self {
        Self::new(REQUEST, src_port, dst_port)
    }

    /// Its 44 bytes.
    pub(crate) fn bytes(&self) -> [u8; HEADER as usize] {
        let mut bytes = [0; HEADER as usize];
        let mut at = 0;
        let mut put = |field: &[u8]| {
            bytes[at..at + field.len()].copy_from_slice(field);
            at += field.len();
        };
        put(&self.src_cid.to_le_bytes());
        put(&self.dst_cid.to_le_bytes());
        put(&self.src_port.to_le_bytes());
        put(&self.dst_port.to_le_bytes());
        put(&self.len.to_le_bytes());
        put(&self.kind.to_le_bytes());
        put(&self.op.to_le_bytes());
        put(&self.flags.to_le_bytes());
        put(&self.buf_alloc.to_le_bytes());
        put(&self.fwd_cnt.to_le_bytes());
        bytes
    }
}

/// The socket device with its receive queue filled.
pub(crate) struct Socket {
    pub(crate) live: Live,
    /// Packets that came, by operation.
    pub(crate) came: [u32; 8],
    /// Where the last one lies, and its length with its header.
    pub(crate) last: (u64, u32),
    /// The operation of the first one since somebody has asked.
    first: Option<u16>,
    /// Looks until a packet that is not taken is given up.
    patience: u32,
}

impl Socket {
    /// `room`: buffers to receive in.
    pub(crate) fn with_room(room: u16) -> Option<Self> {
        let mut live = Device::at(VSOCK)?.bring_up(ENTRIES);
        for index in 0..room {
            let at = answer_of(VSOCK) + u64::from(index) * u64::from(RX_BYTES);
            live.rings[0].offer_buffer(index, at, RX_BYTES, WRITE);
        }
        live.device.kick(0);
        Some(Self {
            live,
            came: [0; 8],
            last: (0, 0),
            first: None,
            patience: if room > 0 { cpu::PATIENCE } else { STALLED },
        })
    }

    pub(crate) fn new() -> Option<Self> {
        Self::with_room(ENTRIES)
    }

    /// Takes what has come; whether anything has.
    pub(crate) fn drain(&mut self) -> bool {
        let mut any = false;
        while let Some((index, length)) = self.live.rings[0].take() {
            let index = index as u16 % ENTRIES;
            let at = answer_of(VSOCK) + u64::from(index) * u64::from(RX_BYTES);
            self.last = (at, length);
            let op = cpu::read16(at + 30);
            self.came[usize::from(op) % self.came.len()] += 1;
            self.first = self.first.or(Some(op));
            self.live.rings[0].offer_buffer(index, at, RX_BYTES, WRITE);
            any = true;
        }
        if any {
            self.live.device.kick(0);
        }
        any
    }

    /// Offers a packet with `payload`, however long its header says it is; false when the device takes no more.
    pub(crate) fn put(&mut self, packet: &Packet, payload: &[u8]) -> bool {
        let queued = cpu::wait_for(self.patience, || {
            self.drain();
            if self.live.rings[1].out() < ENTRIES {
                return Some(true);
            }
            self.live.device.kick(1);
            self.live.device.is_broken().then_some(false)
        });
        if queued != Some(true) {
            return false;
        }
        let ring = &mut self.live.rings[1];
        let index = ring.next % ENTRIES;
        let at = request_of(VSOCK) + u64::from(index) * TX_BYTES;
        cpu::copy_in(at, &packet.bytes());
        cpu::copy_in(at + u64::from(HEADER), payload);
        ring.offer_buffer(index, at, HEADER + payload.len() as u32, 0);
        true
    }

    /// Sends it at once.
    pub(crate) fn send(&mut self, packet: &Packet, payload: &[u8]) -> bool {
        let taken = self.put(packet, payload);
        self.live.device.kick(1);
        taken
    }

    /// Waits until the device has taken everything.
    pub(crate) fn settle(&mut self) {
        self.live.device.kick(1);
        cpu::wait(|| {
            self.drain();
            (self.live.rings[1].out() == 0 || self.live.device.is_broken()).then_some(())
        });
    }

    /// Sends a packet and waits for one; the operation of the first that comes, 0 if none does.
    pub(crate) fn ask(&mut self, packet: &Packet, payload: &[u8]) -> u16 {
        self.drain();
        self.first = None;
        self.send(packet, payload);
        cpu::wait(|| {
            self.drain();
            (self.first.is_some() || self.live.device.is_broken()).then_some(())
        });
        self.first.unwrap_or(0)
    }
}
