//! The device, a guest with as many sockets as it likes, and the peers on the host.

use std::collections::{BTreeMap, VecDeque};
use std::os::unix::net::UnixStream;

use vmm_virtio::vsock::fuzzing::{CONNECTIONS_MAX, Sockets};

use super::connection::{
    CREDIT_UPDATE, Connection, DATA, Packet, Peer, REQUEST, RESET, RESPONSE, low,
};
use crate::input::Input;

const GUEST_CID: u32 = 3;
const HOST_CID: u64 = 2;
const STREAM: u16 = 1;
const HEADER_BYTES: usize = 44;
/// Those the guest may dial, and one it may not.
const HOST_PORTS: [u32; 2] = [1024, 1030];
const NO_PORT: u32 = 1031;
/// Payloads, reads and writes of every interesting length.
const LENGTHS: &[usize] = &[
    0, 1, 2, 100, 4052, 4096, 0x8000, 0x1_0000, 0x2_0000, 0x4_0000, 0x4_0001,
];
/// More than any connection can have under way in either direction.
const ROUNDS_MAX: usize = 4096;

/// Host port and guest port.
type Key = (u32, u32);

pub(super) struct World {
    sockets: Sockets,
    connections: BTreeMap<Key, Connection>,
    /// Peers of connections that the guest has not heard of yet, and the port each dialled.
    dialled: VecDeque<(u32, Peer)>,
    /// Connections that are over, whose last bytes may still be on their way to the peer.
    over: Vec<Connection>,
    /// The resets that packets of no connection have earned, in order.
    resets: VecDeque<[u8; HEADER_BYTES]>,
    seeds: u64,
}

/// A whole header.
#[derive(Clone, Copy, Debug)]
struct Header {
    src_cid: u64,
    dst_cid: u64,
    key: Key,
    socket_type: u16,
    packet: Packet,
}

impl Header {
    /// As the guest sends it.
    fn to_bytes(self) -> [u8; HEADER_BYTES] {
        let (host_port, guest_port) = self.key;
        self.bytes(guest_port, host_port)
    }

    fn bytes(self, src_port: u32, dst_port: u32) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[..8].copy_from_slice(&self.src_cid.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.dst_cid.to_le_bytes());
        let packet = self.packet;
        let words = [src_port, dst_port, packet.len];
        for (to, from) in bytes[16..28].chunks_exact_mut(4).zip(words) {
            to.copy_from_slice(&from.to_le_bytes());
        }
        bytes[28..30].copy_from_slice(&self.socket_type.to_le_bytes());
        bytes[30..32].copy_from_slice(&packet.op.to_le_bytes());
        let words = [packet.flags, packet.buf_alloc, packet.fwd_cnt];
        for (to, from) in bytes[32..].chunks_exact_mut(4).zip(words) {
            to.copy_from_slice(&from.to_le_bytes());
        }
        bytes
    }

    /// As the guest gets it.
    fn from_bytes(bytes: &[u8]) -> Self {
        let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
        let half = |at: usize| u16::from_le_bytes(bytes[at..at + 2].try_into().unwrap());
        let long = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
        Self {
            src_cid: long(0),
            dst_cid: long(8),
            key: (word(16), word(20)),
            socket_type: half(28),
            packet: Packet {
                op: half(30),
                len: word(24),
                flags: word(32),
                buf_alloc: word(36),
                fwd_cnt: word(40),
            },
        }
    }

    /// The reset this packet earns from nobody.
    fn reset(self) -> [u8; HEADER_BYTES] {
        let (host_port, guest_port) = self.key;
        let reset = Self {
            src_cid: self.dst_cid,
            dst_cid: self.src_cid,
            packet: Packet {
                op: RESET,
                ..Packet::default()
            },
            ..self
        };
        reset.bytes(host_port, guest_port)
    }
}

impl World {
    pub(super) fn new() -> Self {
        Self {
            sockets: Sockets::new(GUEST_CID, &HOST_PORTS).unwrap(),
            connections: BTreeMap::new(),
            dialled: VecDeque::new(),
            over: Vec::new(),
            resets: VecDeque::new(),
            seeds: 0,
        }
    }

    fn peer(&mut self, stream: UnixStream) -> Peer {
        self.seeds += 2;
        Peer::new(stream, self.seeds)
    }

    /// A connection there is, or a key of none.
    fn key(&self, input: &mut Input<'_>) -> Key {
        let choice = usize::from(input.u8());
        let count = self.connections.len();
        match choice {
            0..192 if count > 0 => *self.connections.keys().nth(choice % count).unwrap(),
            _ => (
                input.of(&[HOST_PORTS[0], HOST_PORTS[1], NO_PORT, u32::MAX]),
                input.of(&[5000, 5001, 5002, 0, u32::MAX]),
            ),
        }
    }

    // === The guest ===

    /// A packet that is well made, though perhaps not at its place.
    pub(super) fn guest_sends(&mut self, input: &mut Input<'_>) {
        let key = self.key(input);
        let op = input.of(&[
            DATA,
            DATA,
            DATA,
            REQUEST,
            RESPONSE,
            RESET,
            4,
            CREDIT_UPDATE,
            7,
            0,
            8,
        ]);
        let connection = self.connections.get(&key);
        let received = connection.map_or(0, |connection| low(connection.received));
        let mut packet = Packet {
            op,
            buf_alloc: input.of(&[0x4_0000, 0x4_0000, 1, 0, 4096, u32::MAX]),
            fwd_cnt: received.wrapping_sub(input.of(&[0, 0, 1, 4096, u32::MAX])),
            ..Packet::default()
        };
        let mut payload = Vec::new();
        match op {
            DATA => {
                let credit = connection.map_or(0, Connection::guests_credit);
                let length = match input.u8() {
                    0..32 => usize::try_from(credit).unwrap(),
                    32..128 => usize::from(input.u8()),
                    _ => input.of(LENGTHS),
                };
                payload = connection.map_or(vec![0; length], |connection| {
                    connection.guests_bytes(length)
                });
            }
            4 => packet.flags = input.of(&[0, 1, 2, 3, u32::MAX]),
            _ => {}
        }
        packet.len = u32::try_from(payload.len()).unwrap();
        let header = Header {
            src_cid: GUEST_CID.into(),
            dst_cid: HOST_CID,
            key,
            socket_type: STREAM,
            packet,
        };
        self.send(header, &payload, usize::from(input.u16()));
    }

    /// A header of any bits, and a payload of another length than it says.
    pub(super) fn guest_sends_nonsense(&mut self, input: &mut Input<'_>) {
        let header = Header {
            src_cid: input.of(&[u64::from(GUEST_CID), u64::from(GUEST_CID), 2, u64::MAX]),
            dst_cid: input.of(&[HOST_CID, HOST_CID, 0, 3, u64::MAX]),
            key: self.key(input),
            socket_type: input.of(&[STREAM, STREAM, 0, 2]),
            packet: Packet {
                op: u16::from(input.u8() % 10),
                len: input.u32(),
                flags: input.u32(),
                buf_alloc: input.u32(),
                fwd_cnt: input.u32(),
            },
        };
        let cut = usize::from(input.u16());
        // Such a payload never passes: it is not as long as the header says, unless that is
        // nothing.
        let payload = vec![
            0;
            header
                .packet
                .len
                .min(1000)
                .saturating_sub(1)
                .try_into()
                .unwrap()
        ];
        self.send(header, &payload, cut);
    }

    fn send(&mut self, header: Header, payload: &[u8], cut: usize) {
        if !self.sockets.may_receive() {
            return;
        }
        let mut bytes = [&header.to_bytes()[..], payload].concat();
        let cut = cut % (bytes.len() + 1);
        let (first, second) = bytes.split_at_mut(cut);
        assert!(self.sockets.receive(vec![first, second]));
        let arrived = self.sockets.host().accepted();
        if header.src_cid != u64::from(GUEST_CID) {
            assert!(arrived.is_none());
            return;
        }
        if let Some((port, stream)) = arrived {
            return self.connected(header, port, stream.into());
        }
        let whole = payload.len() >= usize::try_from(header.packet.len).unwrap();
        let addressed = header.dst_cid == HOST_CID && header.socket_type == STREAM;
        match self.connections.get_mut(&header.key).filter(|_| addressed) {
            Some(connection) if !connection.is_over() => {
                connection.guest_sends(header.packet, whole)
            }
            _ if header.packet.op == RESET => {}
            _ => self.resets.push_back(header.reset()),
        }
        self.bury();
    }

    fn connected(&mut self, header: Header, port: u32, stream: UnixStream) {
        assert_eq!((port, header.packet.op), (header.key.0, REQUEST));
        assert!(HOST_PORTS.contains(&port) && self.sockets.host().accepted().is_none());
        // Each port is dialled once, and many connections are wanted here.
        self.sockets.listen(port);
        let peer = self.peer(stream);
        let connection = Connection::accepted(peer, header.packet);
        // One that was there is replaced when the host has left it and the guest begins anew.
        self.over
            .extend(self.connections.insert(header.key, connection));
    }

    /// The guest offers room for some packets.
    pub(super) fn guest_receives(&mut self, input: &mut Input<'_>) {
        let room = input.of(&[1, 4052, 4052, 100, 0x1_0000]);
        let cut = usize::from(input.u16());
        for _ in 0..1 + input.u8() % 8 {
            if !self.receive(room, cut) {
                break;
            }
        }
    }

    fn receive(&mut self, room: usize, cut: usize) -> bool {
        let mut memory = vec![0; HEADER_BYTES + room];
        let cut = cut % (memory.len() + 1);
        let (first, second) = memory.split_at_mut(cut);
        let Some(written) = self.sockets.send(vec![first, second]) else {
            return false;
        };
        memory.truncate(usize::try_from(written).unwrap());
        let (bytes, payload) = memory.split_at(HEADER_BYTES);
        if let Some(reset) = self.resets.pop_front() {
            assert_eq!(bytes, reset, "the reset of a packet of no connection");
            return true;
        }
        let header = Header::from_bytes(bytes);
        assert_eq!(
            (header.src_cid, header.dst_cid),
            (HOST_CID, GUEST_CID.into())
        );
        assert_eq!(header.socket_type, STREAM);
        assert_eq!(usize::try_from(header.packet.len).unwrap(), payload.len());
        if header.packet.op == REQUEST {
            self.asked(header);
        }
        let connection = self.connections.get_mut(&header.key);
        connection
            .expect("a connection")
            .guest_gets(header.packet, payload);
        self.bury();
        true
    }

    /// The host asks for a connection; streams are connected in the order in which they came.
    fn asked(&mut self, header: Header) {
        let (port, peer) = self.dialled.pop_front().expect("a stream to be connected");
        assert_eq!(header.key.1, port);
        let before = self
            .connections
            .insert(header.key, Connection::requested(peer));
        assert!(before.is_none(), "a port that is in use");
    }

    /// Puts aside what to the guest is no more.
    fn bury(&mut self) {
        let over: Vec<Key> = self
            .connections
            .iter()
            .filter(|(_, it)| it.is_over())
            .map(|(key, _)| *key)
            .collect();
        for key in over {
            self.over.extend(self.connections.remove(&key));
        }
        assert!(self.sockets.connections() <= CONNECTIONS_MAX);
    }

    // === The host ===

    pub(super) fn look(&mut self) {
        self.sockets.look().unwrap();
        self.sockets.dial().unwrap();
    }

    pub(super) fn dial(&mut self, input: &mut Input<'_>) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let port = input.of(&[1025, 6000, 0, u32::MAX]);
        if self.sockets.host().connect(port, theirs.into()).is_ok() {
            let peer = self.peer(ours);
            self.dialled.push_back((port, peer));
        }
    }

    fn chosen(&mut self, input: &mut Input<'_>) -> Option<&mut Peer> {
        let choice = usize::from(input.u8());
        let count = self.connections.len();
        if choice >= 224 {
            return self.dialled.back_mut().map(|(_, peer)| peer);
        }
        let connection = self
            .connections
            .values_mut()
            .nth(choice.checked_rem(count)?)?;
        Some(&mut connection.peer)
    }

    pub(super) fn peer_writes(&mut self, input: &mut Input<'_>) {
        let length = input.of(LENGTHS);
        if let Some(peer) = self.chosen(input) {
            peer.write(length);
        }
    }

    pub(super) fn peer_ends(&mut self, input: &mut Input<'_>) {
        let how = input.u8();
        if let Some(peer) = self.chosen(input) {
            peer.end(how);
        }
    }

    pub(super) fn peer_reads(&mut self, input: &mut Input<'_>) {
        let length = input.of(LENGTHS);
        let choice = usize::from(input.u8());
        let count = self.connections.len() + self.over.len();
        let all = self.connections.values_mut().chain(&mut self.over);
        if let Some(connection) = choice
            .checked_rem(count)
            .and_then(|at| all.into_iter().nth(at))
        {
            connection.peer_reads(length);
        }
    }

    // === The end ===

    /// Lets everything come that can: peers read, the guest takes and gives credit, until nothing
    /// moves.
    pub(super) fn finish(&mut self) {
        let mut rounds = 0;
        loop {
            self.look();
            let mut moved = false;
            self.give_credit();
            while self.receive(0x1_0000, 0) {
                moved = true;
            }
            for connection in self.connections.values_mut().chain(&mut self.over) {
                moved |= connection.peer_reads(0x4_0000);
            }
            if !moved {
                break;
            }
            rounds += 1;
            assert!(rounds < ROUNDS_MAX, "it never ends");
        }
        assert!(self.resets.is_empty(), "resets are missing");
        self.connections
            .values()
            .chain(&self.over)
            .for_each(Connection::check_arrived);
    }

    fn give_credit(&mut self) {
        let open = self
            .connections
            .iter()
            .filter(|(_, connection)| connection.is_established());
        let updates: Vec<(Key, u32)> = open
            .map(|(key, connection)| (*key, low(connection.received)))
            .collect();
        for (key, fwd_cnt) in updates {
            let packet = Packet {
                op: CREDIT_UPDATE,
                buf_alloc: 1 << 20,
                fwd_cnt,
                ..Packet::default()
            };
            let header = Header {
                src_cid: GUEST_CID.into(),
                dst_cid: HOST_CID,
                key,
                socket_type: STREAM,
                packet,
            };
            self.send(header, &[], 0);
        }
    }
}
