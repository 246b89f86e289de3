//! What is known of one connection outside of the device: enough to say of each packet whether it
//! may be.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

use vmm_virtio::vsock::fuzzing::BUFFER_BYTES;

/// `SHUTDOWN` flags: the sender receives no more, sends no more.
const RECEIVE: u32 = 1;
const SEND: u32 = 2;
const BOTH: u32 = RECEIVE | SEND;

pub(super) const REQUEST: u16 = 1;
pub(super) const RESPONSE: u16 = 2;
pub(super) const RESET: u16 = 3;
pub(super) const SHUTDOWN: u16 = 4;
pub(super) const DATA: u16 = 5;
pub(super) const CREDIT_UPDATE: u16 = 6;
pub(super) const CREDIT_REQUEST: u16 = 7;

/// A header's fields that matter to a connection.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Packet {
    pub(super) op: u16,
    pub(super) len: u32,
    pub(super) flags: u32,
    pub(super) buf_alloc: u32,
    pub(super) fwd_cnt: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// The host asks, the guest has yet to answer.
    Requested,
    /// The guest has asked and has yet to get the answer.
    Accepted,
    Established,
    /// The guest has broken a rule and has yet to get the reset.
    Broken,
    /// To the guest there is no connection.
    Over,
}

#[derive(Debug)]
pub(super) struct Connection {
    state: State,
    pub(super) peer: Peer,
    /// Bytes the guest was allowed to send, and the `fwd_cnt` it last got.
    sent: u64,
    told: u32,
    /// Bytes the guest got, and the credit the device last got.
    pub(super) received: u64,
    buf_alloc: u32,
    fwd_cnt: u32,
    /// Directions ended by the guest, and by the host as far as the guest knows.
    guest_ended: u32,
    host_ended: u32,
}

/// The host's end.
#[derive(Debug)]
pub(super) struct Peer {
    stream: Option<UnixStream>,
    /// Tells the bytes of one connection from those of another.
    seed: u64,
    written: u64,
    read: u64,
    /// The peer has ended a direction itself.
    ended_writing: bool,
    ended_reading: bool,
}

/// Byte number `at` of a stream.
fn pattern(seed: u64, at: u64) -> u8 {
    (at ^ at >> 8 ^ seed.wrapping_mul(0x9d)).to_le_bytes()[0]
}

pub(super) fn bytes(seed: u64, from: u64, count: usize) -> Vec<u8> {
    (from..).take(count).map(|at| pattern(seed, at)).collect()
}

impl Connection {
    pub(super) fn requested(peer: Peer) -> Self {
        Self::new(State::Requested, peer)
    }

    pub(super) fn accepted(peer: Peer, request: Packet) -> Self {
        let mut connection = Self::new(State::Accepted, peer);
        connection.learn(request);
        connection
    }

    fn new(state: State, peer: Peer) -> Self {
        Self {
            state,
            peer,
            sent: 0,
            told: 0,
            received: 0,
            buf_alloc: 0,
            fwd_cnt: 0,
            guest_ended: 0,
            host_ended: 0,
        }
    }

    fn learn(&mut self, packet: Packet) {
        self.buf_alloc = packet.buf_alloc;
        self.fwd_cnt = packet.fwd_cnt;
    }

    /// To the guest there is no connection.
    pub(super) fn is_over(&self) -> bool {
        self.state == State::Over
    }

    pub(super) fn is_established(&self) -> bool {
        self.state == State::Established
    }

    /// What the guest would send next, and how much it may.
    pub(super) fn guests_bytes(&self, count: usize) -> Vec<u8> {
        bytes(self.peer.seed ^ 1, self.sent, count)
    }

    pub(super) fn guests_credit(&self) -> u32 {
        let in_flight = low(self.sent).wrapping_sub(self.told);
        BUFFER_BYTES.saturating_sub(in_flight)
    }

    /// The guest sends a packet; `whole`: with as much payload as it says.
    pub(super) fn guest_sends(&mut self, packet: Packet, whole: bool) {
        if self.state == State::Over || self.state == State::Broken && packet.op != RESET {
            return;
        }
        if !whole {
            self.state = State::Broken;
            return;
        }
        match (self.state, packet.op) {
            (_, RESET) => self.state = State::Over,
            (State::Requested, RESPONSE) => {
                self.state = State::Established;
                self.learn(packet);
            }
            (State::Accepted | State::Established, DATA) => {
                self.learn(packet);
                if self.guest_ended & SEND != 0 || packet.len > self.guests_credit() {
                    self.state = State::Broken;
                } else {
                    self.sent += u64::from(packet.len);
                }
            }
            (State::Accepted | State::Established, SHUTDOWN) => {
                self.learn(packet);
                self.guest_ended |= packet.flags & BOTH;
                if self.guest_ended == BOTH {
                    self.state = State::Broken;
                }
            }
            (State::Accepted | State::Established, CREDIT_UPDATE | CREDIT_REQUEST) => {
                self.learn(packet);
            }
            _ => self.state = State::Broken,
        }
    }

    /// The guest gets a packet, which has to be one that may come now.
    pub(super) fn guest_gets(&mut self, packet: Packet, payload: &[u8]) {
        assert_ne!(self.state, State::Over, "{packet:?} of no connection");
        if packet.op == RESET {
            self.state = State::Over;
            return;
        }
        assert_ne!(self.state, State::Broken, "{packet:?} where a reset is due");
        assert_eq!(packet.buf_alloc, BUFFER_BYTES);
        let news = packet.fwd_cnt.wrapping_sub(self.told);
        assert!(
            news <= low(self.sent).wrapping_sub(self.told),
            "more passed on than sent"
        );
        self.told = packet.fwd_cnt;
        match (self.state, packet.op) {
            (State::Requested, REQUEST) => {}
            (State::Accepted, RESPONSE) => self.state = State::Established,
            (State::Established, DATA) => self.guest_gets_data(packet, payload),
            (State::Established, SHUTDOWN) => {
                assert!(
                    packet.flags & !BOTH == 0 && packet.flags & self.host_ended == self.host_ended
                );
                assert_ne!(packet.flags, self.host_ended, "said before");
                self.host_ended = packet.flags;
            }
            (State::Established, CREDIT_UPDATE | CREDIT_REQUEST) => {}
            _ => panic!("{packet:?} in {:?}", self.state),
        }
    }

    fn guest_gets_data(&mut self, packet: Packet, payload: &[u8]) {
        assert!(packet.len > 0 && self.host_ended & SEND == 0 && self.guest_ended & RECEIVE == 0);
        let in_flight = low(self.received).wrapping_sub(self.fwd_cnt);
        let credit = self.buf_alloc.saturating_sub(in_flight);
        assert!(
            packet.len <= credit,
            "{} bytes for a credit of {credit}",
            packet.len
        );
        assert!(
            payload == bytes(self.peer.seed, self.received, payload.len()),
            "other bytes than written"
        );
        self.received += u64::from(packet.len);
        assert!(self.received <= self.peer.written);
    }

    /// The peer reads what has come; returns whether anything has.
    pub(super) fn peer_reads(&mut self, count: usize) -> bool {
        let sent = self.sent;
        self.peer.read(count, sent)
    }

    /// Once nothing moves any more, everything has arrived that could.
    pub(super) fn check_arrived(&self) {
        let peer = &self.peer;
        if peer.stream.is_some() && !peer.ended_reading {
            assert_eq!(
                peer.read, self.sent,
                "bytes of the guest's are lost: {self:?}"
            );
        }
        let listens = self.guest_ended & RECEIVE == 0 && self.is_established();
        if listens && peer.stream.is_some() {
            assert_eq!(
                self.received, peer.written,
                "bytes of the host's are lost: {self:?}"
            );
            let told = !peer.ended_writing || self.host_ended & SEND != 0;
            assert!(told, "the guest was not told of the end: {self:?}");
        }
    }
}

impl Peer {
    pub(super) fn new(stream: UnixStream, seed: u64) -> Self {
        stream.set_nonblocking(true).unwrap();
        Self {
            stream: Some(stream),
            seed,
            written: 0,
            read: 0,
            ended_writing: false,
            ended_reading: false,
        }
    }

    pub(super) fn write(&mut self, count: usize) {
        let Some(stream) = self.stream.as_mut().filter(|_| !self.ended_writing) else {
            return;
        };
        // A device that takes no more is told from one that is gone when the peer reads.
        if let Ok(count) = stream.write(&bytes(self.seed, self.written, count)) {
            self.written += u64::try_from(count).unwrap();
        }
    }

    fn read(&mut self, count: usize, sent: u64) -> bool {
        let Some(stream) = self.stream.as_mut().filter(|_| !self.ended_reading) else {
            return false;
        };
        let mut buffer = vec![0; count];
        match stream.read(&mut buffer) {
            Ok(count) => {
                buffer.truncate(count);
                assert!(
                    buffer == bytes(self.seed ^ 1, self.read, count),
                    "other bytes than sent"
                );
                self.read += u64::try_from(count).unwrap();
                assert!(self.read <= sent, "more than was sent");
                count > 0
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => false,
            // The device has closed its end without reading all that was written.
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::ConnectionReset);
                true
            }
        }
    }

    pub(super) fn end(&mut self, how: u8) {
        let Some(stream) = &self.stream else {
            return;
        };
        match how % 3 {
            0 => {
                self.ended_writing |= stream.shutdown(Shutdown::Write).is_ok();
            }
            1 => {
                self.ended_reading |= stream.shutdown(Shutdown::Read).is_ok();
            }
            _ => self.stream = None,
        }
    }
}

pub(super) fn low(count: u64) -> u32 {
    u32::try_from(count & u64::from(u32::MAX)).unwrap()
}
