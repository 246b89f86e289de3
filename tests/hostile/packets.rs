//! Packets of the socket device: lies in every field, masses of small ones, connections without end.

use crate::cpu;
use crate::log::{Report, say};
use crate::transport::{Device, Live, VSOCK, WRITE, answer_of, request_of};

/// Operations (virtio 1.2, section 5.10.6).
pub const REQUEST: u16 = 1;
pub const RESPONSE: u16 = 2;
pub const RESET: u16 = 3;
pub const SHUTDOWN: u16 = 4;
pub const DATA: u16 = 5;
pub const CREDIT_UPDATE: u16 = 6;
pub const CREDIT_REQUEST: u16 = 7;

const HEADER: u32 = 44;
/// The guest's address, and the host's.
const GUEST: u64 = 3;
const HOST: u64 = 2;
/// The port on which the supervisor waits for the agent.
pub const AGENT_PORT: u32 = 1024;

/// Ports from the agent's on that a VMM with a case for its supervisor has, each to be dialled once; a sandbox's has the first one alone.
const PORTS: u32 = 64;
/// Of these, those for attacks that want a connection of their own.
const CREDIT_PORT: u32 = AGENT_PORT + PORTS - 4;
const STORM_PORT: u32 = CREDIT_PORT - 2;

/// Entries of the queues, and the distance of their buffers.
const ENTRIES: u16 = 128;
const TX_BYTES: u64 = 2048;
const RX_BYTES: u32 = 4096;

/// Packets of a storm.
const STORM: u32 = 4_000;
/// Looks at a device that takes nothing because it has no room for answers.
const STALLED: u32 = 20_000;
/// Connections that are asked for.
const DIALS: u32 = 1_500;
/// No VMM holds more connections for one guest.
const CONNECTIONS_MAX: u32 = 1024;

/// The header of a packet.
#[derive(Clone, Copy)]
pub struct Packet {
    pub src_cid: u64,
    pub dst_cid: u64,
    pub src_port: u32,
    pub dst_port: u32,
    pub len: u32,
    pub kind: u16,
    pub op: u16,
    pub flags: u32,
    pub buf_alloc: u32,
    pub fwd_cnt: u32,
}

impl Packet {
    /// A packet without fault.
    pub fn new(op: u16, src_port: u32, dst_port: u32) -> Self {
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
    pub fn request(src_port: u32, dst_port: u32) -> Self {
        Self::new(REQUEST, src_port, dst_port)
    }

    /// Its 44 bytes.
    pub fn bytes(&self) -> [u8; HEADER as usize] {
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
pub struct Socket {
    pub live: Live,
    /// Packets that came, by operation.
    pub came: [u32; 8],
    /// Where the last one lies, and its length with its header.
    pub last: (u64, u32),
    /// Looks until a packet that is not taken is given up.
    patience: u32,
}

impl Socket {
    /// `room`: buffers to receive in.
    pub fn with_room(room: u16) -> Option<Self> {
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
            patience: if room > 0 { cpu::PATIENCE } else { STALLED },
        })
    }

    pub fn new() -> Option<Self> {
        Self::with_room(ENTRIES)
    }

    /// Takes what has come; whether anything has.
    pub fn drain(&mut self) -> bool {
        let mut any = false;
        while let Some((index, length)) = self.live.rings[0].take() {
            let index = index as u16 % ENTRIES;
            let at = answer_of(VSOCK) + u64::from(index) * u64::from(RX_BYTES);
            self.last = (at, length);
            let op = cpu::read16(at + 30);
            self.came[usize::from(op) % self.came.len()] += 1;
            self.live.rings[0].offer_buffer(index, at, RX_BYTES, WRITE);
            any = true;
        }
        if any {
            self.live.device.kick(0);
        }
        any
    }

    /// Offers a packet with `payload`, however long its header says it is; false when the device takes no more.
    pub fn put(&mut self, packet: &Packet, payload: &[u8]) -> bool {
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
    pub fn send(&mut self, packet: &Packet, payload: &[u8]) -> bool {
        let taken = self.put(packet, payload);
        self.live.device.kick(1);
        taken
    }

    /// Waits until the device has taken everything.
    pub fn settle(&mut self) {
        self.live.device.kick(1);
        cpu::wait(|| {
            self.drain();
            (self.live.rings[1].out() == 0 || self.live.device.is_broken()).then_some(())
        });
    }

    /// Sends a packet and waits for one; its operation, 0 if none comes.
    pub fn ask(&mut self, packet: &Packet, payload: &[u8]) -> u16 {
        self.drain();
        self.send(packet, payload);
        let came = cpu::wait(|| {
            let came = self.drain();
            (came || self.live.device.is_broken()).then_some(came)
        });
        match came {
            Some(true) => cpu::read16(self.last.0 + 30),
            _ => 0,
        }
    }
}

fn no_device(report: &mut Report) {
    report.wrong(format_args!("there is no socket device"));
}

fn expect_works(report: &mut Report) {
    let works = Device::at(VSOCK).is_some_and(Device::works);
    report.expect(
        works,
        format_args!("the socket device does not work after it"),
    );
}

/// Headers without sense, one field after another, on connections that are there and that are not.
pub fn malformed(report: &mut Report) {
    let Some(mut socket) = Socket::new() else {
        return no_device(report);
    };
    let good = Packet::new(DATA, 5000, AGENT_PORT);
    let mut port = AGENT_PORT;
    let mut try_packet = |mut packet: Packet| {
        report.tried();
        socket.put(&Packet::request(packet.src_port, port), b"");
        if packet.dst_port == AGENT_PORT {
            packet.dst_port = port;
        }
        socket.put(&packet, b"abc");
        socket.put(&Packet::new(RESET, packet.src_port, port), b"");
        port = (port + 1).min(STORM_PORT - 1);
        socket.settle();
    };
    for cid in [0, 1, 2, 3, 4, u64::from(u32::MAX), 1 << 32, u64::MAX] {
        try_packet(Packet {
            src_cid: cid,
            len: 3,
            ..good
        });
        try_packet(Packet {
            dst_cid: cid,
            len: 3,
            ..good
        });
    }
    for kind in [0, 2, 3, 0x8000, u16::MAX] {
        try_packet(Packet {
            kind,
            len: 3,
            ..good
        });
        try_packet(Packet {
            kind,
            op: REQUEST,
            ..good
        });
    }
    for op in [0, RESPONSE, 8, 9, 255, 256, u16::MAX] {
        try_packet(Packet { op, len: 3, ..good });
    }
    for len in [
        1,
        2,
        4,
        4095,
        1 << 18,
        (1 << 18) + 1,
        1 << 31,
        u32::MAX - 43,
        u32::MAX,
    ] {
        try_packet(Packet { len, ..good });
        try_packet(Packet {
            len,
            op: REQUEST,
            ..good
        });
        try_packet(Packet {
            len,
            op: CREDIT_UPDATE,
            ..good
        });
    }
    for flags in [0, 1, 2, 3, 4, u32::MAX] {
        try_packet(Packet {
            flags,
            op: SHUTDOWN,
            ..good
        });
        try_packet(Packet {
            flags,
            op: SHUTDOWN,
            len: 3,
            ..good
        });
    }
    for port in [0, 1, 1023, 1025, 1 << 30, 1 << 31, u32::MAX] {
        try_packet(Packet {
            dst_port: port,
            len: 3,
            ..good
        });
        try_packet(Packet {
            src_port: port,
            len: 3,
            ..good
        });
    }
    short(report);
    expect_works(report);
}

/// Chains that are no packet, and room that is no packet's.
fn short(report: &mut Report) {
    for length in [0, 1, 43] {
        report.tried();
        let Some(mut socket) = Socket::new() else {
            return no_device(report);
        };
        socket.live.rings[1].offer_buffer(0, request_of(VSOCK), length, 0);
        socket.live.device.kick(1);
        socket.live.settle(1);
    }
    for length in [0, 1, 43, 44] {
        report.tried();
        let Some(mut socket) = Socket::with_room(0) else {
            return no_device(report);
        };
        socket.live.rings[0].offer_buffer(0, answer_of(VSOCK), length, WRITE);
        socket.send(&Packet::request(9, 9), b"");
        socket.live.settle(1);
    }
}

/// A connection to every port of interest: the agent's is the only one.
pub fn ports(report: &mut Report) {
    let Some(mut socket) = Socket::new() else {
        return no_device(report);
    };
    let others = [
        2048,
        8080,
        65535,
        65536,
        1 << 30,
        (1 << 30) + 1,
        1 << 31,
        u32::MAX - 1,
        u32::MAX,
    ];
    for port in (0..64).chain(AGENT_PORT - 40..AGENT_PORT).chain(others) {
        let answer = socket.ask(&Packet::request(20_000 + port % 1000, port), b"");
        report.expect(
            answer == RESET,
            format_args!("a request to port {port} was answered by {answer}"),
        );
    }
}

/// More bytes than credit, credit that is none, and the ends of directions in every order.
pub fn credit(report: &mut Report) {
    let Some(mut socket) = Socket::new() else {
        return no_device(report);
    };
    let payload = [b'z'; 1900];
    for (count, buf_alloc, fwd_cnt) in [
        (0, u32::MAX, u32::MAX),
        (1, 0, 0),
        (2, u32::MAX, 1 << 31),
        (3, 1, u32::MAX),
    ] {
        let port = 6000 + count;
        let dialled = CREDIT_PORT + count;
        let answer = socket.ask(&Packet::request(port, dialled), b"");
        report.expect(
            [RESPONSE, RESET].contains(&answer),
            format_args!("a request was answered by {answer}"),
        );
        let lie = |op| Packet {
            buf_alloc,
            fwd_cnt,
            ..Packet::new(op, port, dialled)
        };
        for _ in 0..200 {
            socket.put(
                &Packet {
                    len: payload.len() as u32,
                    ..lie(DATA)
                },
                &payload,
            );
            socket.put(&lie(CREDIT_UPDATE), b"");
            socket.put(&lie(CREDIT_REQUEST), b"");
        }
        for flags in [1, 2, 1] {
            socket.put(
                &Packet {
                    flags,
                    ..lie(SHUTDOWN)
                },
                b"",
            );
            socket.put(
                &Packet {
                    len: 4,
                    ..lie(DATA)
                },
                b"late",
            );
            socket.put(&lie(CREDIT_REQUEST), b"");
        }
        socket.settle();
    }
    expect_works(report);
}

/// Masses of packets that belong to nothing, and of the smallest ones, with room for answers and without.
pub fn storm(report: &mut Report) {
    for room in [ENTRIES, 0] {
        let Some(mut socket) = Socket::with_room(room) else {
            return no_device(report);
        };
        let dialled = STORM_PORT + u32::from(room == 0);
        socket.put(&Packet::request(7000, dialled), b"");
        for count in 0..STORM {
            report.tried();
            let op = [DATA, RESET, CREDIT_UPDATE, CREDIT_REQUEST, SHUTDOWN, 0][count as usize % 6];
            let unknown = Packet {
                len: 1,
                ..Packet::new(op, count, AGENT_PORT + count % 3)
            };
            let tiny = Packet {
                len: 1,
                ..Packet::new(DATA, 7000, dialled)
            };
            // Without room for answers no more are taken at some time, and that is right.
            let taken = socket.put(&unknown, b"u") && socket.put(&tiny, b"t");
            if !taken {
                report.expect(room == 0, format_args!("packet {count} was not taken"));
                break;
            }
            if count % 16 == 0 {
                socket.live.device.kick(1);
            }
        }
        socket.live.device.kick(1);
    }
    expect_works(report);
}

/// Connections to the agent's port, many more than one.
pub fn dials(report: &mut Report) {
    let granted = dial_many(report);
    report.expect(
        granted <= CONNECTIONS_MAX,
        format_args!("{granted} connections were granted at one time"),
    );
    say!("dials: {granted} granted");
    expect_works(report);
}

/// The same for ever.
pub fn dials_for_ever(report: &mut Report) {
    loop {
        dial_many(report);
    }
}

/// Returns how many were granted before any was ended.
fn dial_many(report: &mut Report) -> u32 {
    let Some(mut socket) = Socket::new() else {
        no_device(report);
        return 0;
    };
    for count in 0..DIALS {
        report.tried();
        let port = AGENT_PORT + count % PORTS;
        socket.put(&Packet::request(30_000 + count, port), b"");
    }
    socket.settle();
    let granted = socket.came[usize::from(RESPONSE)];
    // The same once more, some half closed before.
    for count in (0..DIALS).step_by(3) {
        report.tried();
        let port = AGENT_PORT + count % PORTS;
        let half = Packet {
            flags: 2,
            ..Packet::new(SHUTDOWN, 30_000 + count, port)
        };
        if count % 2 == 0 {
            socket.put(&half, b"");
        }
        socket.put(&Packet::request(30_000 + count, port), b"");
    }
    socket.settle();
    granted
}
