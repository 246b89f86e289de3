//! Promises of whole connections: a guest of packets on one side, sockets on the other, no queues in between.

use std::hash::{DefaultHasher, Hasher};
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::Shutdown as Direction;
use std::os::unix::net::UnixStream;

use rustix::event::{PollFd, PollFlags, poll};

use super::super::host::Host;
use super::super::packet::{HEADER_BYTES, Shutdown};
use super::*;

const CID: u64 = 3;
const PORT: u32 = 1024;
/// A guest port of no meaning.
const GUEST_PORT: u32 = 5000;

/// The device's connections and a guest that has as much room as it says.
struct Guest {
    muxer: Muxer,
    host: Host,
}

/// A packet as the guest gets it.
#[derive(Debug)]
struct Packet {
    header: Header,
    payload: Vec<u8>,
}

impl Packet {
    fn operation(&self) -> Operation {
        self.header.operation().unwrap()
    }
}

/// One connection as the guest sees it.
#[derive(Clone, Copy)]
struct Socket {
    host_port: u32,
    guest_port: u32,
    buf_alloc: u32,
    fwd_cnt: u32,
}

impl Socket {
    fn new(host_port: u32, guest_port: u32) -> Self {
        Self {
            host_port,
            guest_port,
            buf_alloc: 256 * 1024,
            fwd_cnt: 0,
        }
    }

    fn header(&self, operation: Operation) -> Header {
        Header {
            src_cid: CID,
            dst_cid: HOST_CID,
            src_port: self.guest_port,
            dst_port: self.host_port,
            socket_type: TYPE_STREAM,
            op: operation as u16,
            buf_alloc: self.buf_alloc,
            fwd_cnt: self.fwd_cnt,
            ..Header::default()
        }
    }

    fn shutdown(&self, directions: Shutdown) -> Header {
        Header {
            flags: directions.flags(),
            ..self.header(Operation::Shutdown)
        }
    }
}

impl Guest {
    fn new() -> Self {
        let host = Host::new(vec![PORT]).unwrap();
        let muxer = Muxer::new(CID, &[PORT], host.ends(), false).unwrap();
        Self { muxer, host }
    }

    /// Sends a packet without payload; the port is always open.
    fn send(&mut self, header: Header) {
        self.host.ends().listen(PORT);
        self.send_once(header);
    }

    fn send_once(&mut self, header: Header) {
        self.muxer.receive(&header, Buffers::default());
    }

    fn send_data(&mut self, socket: &Socket, payload: &[u8]) {
        let header = Header {
            len: u32::try_from(payload.len()).unwrap(),
            ..socket.header(Operation::Data)
        };
        let mut memory = payload.to_vec();
        let buffers = Buffers::from(memory.as_mut_slice());
        self.muxer.receive(&header, buffers);
    }

    /// Offers room for one packet of `room` bytes of payload.
    fn receive_into(&mut self, room: usize) -> Option<Packet> {
        let mut memory = vec![0; HEADER_BYTES + room];
        let written = self.muxer.send(&Permit::of(&mut memory))?;
        memory.truncate(usize::try_from(written).unwrap());
        let payload = memory.split_off(HEADER_BYTES);
        let header = Header::from_bytes(&memory.try_into().unwrap());
        assert_eq!((header.src_cid, header.dst_cid), (HOST_CID, CID));
        Some(Packet { header, payload })
    }

    fn receive(&mut self) -> Option<Packet> {
        self.receive_into(4096)
    }

    fn expect(&mut self, operation: Operation) -> Packet {
        let packet = self.receive().unwrap();
        assert_eq!(packet.operation(), operation);
        packet
    }

    fn expect_nothing(&mut self) {
        let packet = self.receive();
        assert!(packet.is_none(), "{packet:?}");
    }

    /// Lets the device see what its streams have become.
    fn look(&mut self) {
        while self.has_news() {
            self.muxer.look().unwrap();
        }
    }

    fn has_news(&self) -> bool {
        let news = self.muxer.news();
        let now = rustix::event::Timespec::default();
        poll(&mut [PollFd::new(&news, PollFlags::IN)], Some(&now)).unwrap() > 0
    }

    /// A connection the guest makes; the host's peer does not block.
    fn connect(&mut self, guest_port: u32) -> (Socket, UnixStream) {
        self.connect_with_room(guest_port, 256 * 1024)
    }

    fn connect_with_room(&mut self, guest_port: u32, room: u32) -> (Socket, UnixStream) {
        let mut socket = Socket::new(PORT, guest_port);
        socket.buf_alloc = room;
        self.send(socket.header(Operation::Request));
        self.expect(Operation::Response);
        let (port, stream) = self.host.accepted().unwrap();
        assert_eq!(port, PORT);
        let peer = UnixStream::from(stream);
        peer.set_nonblocking(true).unwrap();
        (socket, peer)
    }

    /// A connection the host asks for, up to the guest's answer.
    fn dialled(&mut self) -> (Socket, UnixStream) {
        let (ours, peer) = UnixStream::pair().unwrap();
        peer.set_nonblocking(true).unwrap();
        self.host.connect(GUEST_PORT, ours.into()).unwrap();
        self.muxer.dial().unwrap();
        let request = self.expect(Operation::Request).header;
        assert_eq!(request.dst_port, GUEST_PORT);
        (Socket::new(request.src_port, GUEST_PORT), peer)
    }
}

/// Bytes that repeat with no period that any buffer has.
fn pattern(count: usize) -> Vec<u8> {
    (0..count)
        .map(|at| u8::try_from(at % 251).unwrap())
        .collect()
}

fn checksum(bytes: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write(bytes);
    hasher.finish()
}

/// What there is to read now; the bool: up to the end.
fn drain(peer: &mut UnixStream) -> (Vec<u8>, bool) {
    let mut bytes = Vec::new();
    match peer.read_to_end(&mut bytes) {
        Ok(_) => (bytes, true),
        Err(error) if error.kind() == ErrorKind::WouldBlock => (bytes, false),
        Err(error) => panic!("{error}"),
    }
}

/// Writes until the socket takes no more; returns how much it took.
fn fill(peer: &mut UnixStream) -> usize {
    let chunk = pattern(4096);
    let mut total = 0;
    loop {
        match peer.write(&chunk) {
            Ok(count) => total += count,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return total,
            Err(error) => panic!("{error}"),
        }
    }
}

#[test]
fn guest_reaches_the_host_on_an_allowed_port() {
    let mut guest = Guest::new();
    let (socket, mut peer) = guest.connect(GUEST_PORT);
    guest.send_data(&socket, b"to the host");
    assert_eq!(drain(&mut peer), (b"to the host".to_vec(), false));
    peer.write_all(b"to the guest").unwrap();
    guest.look();
    assert_eq!(guest.expect(Operation::Data).payload, b"to the guest");
    guest.expect_nothing();
}

#[test]
fn accepted_connections_make_the_event_readable_until_fetched() {
    let mut guest = Guest::new();
    assert!(!guest.host.event().clear().unwrap());
    guest.send(Socket::new(PORT, 1).header(Operation::Request));
    guest.send(Socket::new(PORT, 2).header(Operation::Request));
    assert!(guest.host.accepted().is_some());
    let now = rustix::event::Timespec::default();
    let event = &mut [PollFd::new(guest.host.event(), PollFlags::IN)];
    assert_eq!(poll(event, Some(&now)).unwrap(), 1);
    assert!(guest.host.accepted().is_some());
    assert_eq!(poll(event, Some(&now)).unwrap(), 0);
    assert!(guest.host.accepted().is_none());
}

#[test]
fn guest_is_refused_on_every_other_port() {
    let mut guest = Guest::new();
    for port in [0, 1023, 1025, DIAL_PORT_MIN, PORT_ANY] {
        guest.send(Socket::new(port, GUEST_PORT).header(Operation::Request));
        let reset = guest.expect(Operation::Reset).header;
        assert_eq!((reset.src_port, reset.dst_port), (port, GUEST_PORT));
    }
    assert!(guest.host.accepted().is_none());
}

#[test]
fn port_is_closed_once_it_was_dialled() {
    let mut guest = Guest::new();
    let first = Socket::new(PORT, 1);
    guest.send_once(first.header(Operation::Request));
    guest.expect(Operation::Response);
    guest.send_once(Socket::new(PORT, 2).header(Operation::Request));
    assert_eq!(guest.expect(Operation::Reset).header.dst_port, 2);
    // Nor is it open again when the first connection is over, fetched or not, or the device was
    // reset.
    guest.send_once(first.header(Operation::Reset));
    assert!(guest.host.accepted().is_some());
    guest.send_once(first.header(Operation::Request));
    guest.expect(Operation::Reset);
    guest.muxer = Muxer::new(CID, &[PORT], guest.host.ends(), false).unwrap();
    guest.send_once(first.header(Operation::Request));
    guest.expect(Operation::Reset);
    assert!(guest.host.accepted().is_none());
}

#[test]
fn host_reaches_a_listening_guest_and_nothing_written_early_is_lost() {
    let mut guest = Guest::new();
    let (ours, mut peer) = UnixStream::pair().unwrap();
    peer.write_all(b"early").unwrap();
    guest.host.connect(GUEST_PORT, ours.into()).unwrap();
    guest.muxer.dial().unwrap();
    let request = guest.expect(Operation::Request).header;
    guest.look();
    guest.expect_nothing();
    let socket = Socket::new(request.src_port, GUEST_PORT);
    guest.send(socket.header(Operation::Response));
    assert_eq!(guest.expect(Operation::Data).payload, b"early");
}

#[test]
fn refusal_by_the_guest_closes_the_stream() {
    let mut guest = Guest::new();
    let (socket, mut peer) = guest.dialled();
    guest.send(socket.header(Operation::Reset));
    assert_eq!(drain(&mut peer), (Vec::new(), true));
    guest.expect_nothing();
    assert!(guest.muxer.table.is_empty());
}

#[test]
fn host_connections_to_one_port_have_different_source_ports() {
    let mut guest = Guest::new();
    guest.muxer.next_port = DIAL_PORT_MAX;
    let dialled: Vec<_> = (0..3).map(|_| guest.dialled()).collect();
    let ports: Vec<u32> = dialled.iter().map(|(socket, _)| socket.host_port).collect();
    assert_eq!(ports, [DIAL_PORT_MAX, DIAL_PORT_MIN, DIAL_PORT_MIN + 1]);
}

#[test]
fn bytes_reach_the_guest_whole_through_a_tiny_window() {
    let mut guest = Guest::new();
    let (mut socket, mut peer) = guest.connect_with_room(GUEST_PORT, 7);
    let sent = pattern(10_000);
    peer.write_all(&sent).unwrap();
    guest.look();
    let mut got = Vec::new();
    let mut in_flight = 0;
    while got.len() < sent.len() {
        let packet = guest.receive_into(5).unwrap();
        match packet.operation() {
            Operation::Data => {
                in_flight += packet.payload.len();
                assert!(in_flight <= 7);
                got.extend(packet.payload);
            }
            Operation::CreditRequest => {
                socket.fwd_cnt = u32::try_from(got.len()).unwrap();
                in_flight = 0;
                guest.send(socket.header(Operation::CreditUpdate));
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(checksum(&got), checksum(&sent));
}

#[test]
fn bytes_reach_a_slow_host_whole_within_the_window() {
    let mut guest = Guest::new();
    let (socket, mut peer) = guest.connect(GUEST_PORT);
    let sent = pattern(4 << 20);
    let (mut at, mut told) = (0, 0);
    let mut got = Vec::new();
    while got.len() < sent.len() {
        // All the credit there is, then a little reading.
        let allowed = usize::try_from(BUFFER_BYTES).unwrap() - (at - told);
        let end = sent.len().min(at + allowed);
        if end > at {
            guest.send_data(&socket, &sent[at..end]);
            at = end;
        }
        let mut chunk = [0; 50_000];
        let count = peer.read(&mut chunk).unwrap();
        got.extend(&chunk[..count]);
        guest.look();
        while let Some(packet) = guest.receive() {
            assert_eq!(packet.operation(), Operation::CreditUpdate);
            told = usize::try_from(packet.header.fwd_cnt).unwrap();
        }
    }
    assert_eq!(checksum(&got), checksum(&sent));
}

#[test]
fn a_backlog_never_exceeds_the_window() {
    let mut guest = Guest::new();
    let (socket, _peer) = guest.connect(GUEST_PORT);
    let window = usize::try_from(BUFFER_BYTES).unwrap();
    let mut in_flight = 0;
    loop {
        guest.send_data(&socket, &pattern(window - in_flight));
        in_flight = window;
        let Some(update) = guest.receive() else { break };
        in_flight -= usize::try_from(update.header.fwd_cnt).unwrap() % (window + 1);
    }
    assert!(
        guest
            .muxer
            .table
            .values()
            .all(|entry| entry.endpoint.has_backlog())
    );
    guest.send_data(&socket, b"x");
    guest.expect(Operation::Reset);
}

#[test]
fn nothing_is_read_from_the_host_before_the_guest_has_room() {
    let mut guest = Guest::new();
    let (_, mut peer) = guest.connect(GUEST_PORT);
    let before = fill(&mut peer);
    guest.look();
    assert_eq!(fill(&mut peer), 0);
    let mut got = 0;
    while let Some(packet) = guest.receive() {
        got += packet.payload.len();
    }
    assert_eq!(got, before);
}

#[test]
fn guest_half_close_shows_the_host_the_end_and_leaves_the_way_back() {
    let mut guest = Guest::new();
    let (socket, mut peer) = guest.connect(GUEST_PORT);
    guest.send_data(&socket, b"last words");
    guest.send(socket.shutdown(Shutdown::SEND));
    assert_eq!(drain(&mut peer), (b"last words".to_vec(), true));
    peer.write_all(b"answer").unwrap();
    guest.look();
    assert_eq!(guest.expect(Operation::Data).payload, b"answer");
    drop(peer);
    guest.look();
    let told = guest.expect(Operation::Shutdown).header;
    assert_eq!(told.flags, Shutdown::BOTH.flags());
    guest.send(socket.header(Operation::Reset));
    assert!(guest.muxer.table.is_empty());
}

#[test]
fn guest_that_takes_no_more_breaks_the_hosts_pipe() {
    let mut guest = Guest::new();
    let (socket, mut peer) = guest.connect(GUEST_PORT);
    guest.send(socket.shutdown(Shutdown::RECEIVE));
    let error = peer.write(b"x").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::BrokenPipe);
    guest.send_data(&socket, b"still sending");
    assert_eq!(drain(&mut peer), (b"still sending".to_vec(), false));
}

#[test]
fn host_half_close_reaches_the_guest_after_the_last_byte() {
    let mut guest = Guest::new();
    let (socket, mut peer) = guest.connect(GUEST_PORT);
    peer.write_all(b"stdin").unwrap();
    peer.shutdown(Direction::Write).unwrap();
    guest.look();
    assert_eq!(guest.expect(Operation::Data).payload, b"stdin");
    let told = guest.expect(Operation::Shutdown).header;
    assert_eq!(told.flags, Shutdown::SEND.flags());
    guest.expect_nothing();
    guest.send_data(&socket, b"stdout");
    assert_eq!(drain(&mut peer), (b"stdout".to_vec(), false));
    guest.send(socket.shutdown(Shutdown::BOTH));
    guest.expect(Operation::Reset);
    assert_eq!(drain(&mut peer), (Vec::new(), true));
    assert!(guest.muxer.table.is_empty());
}

#[test]
fn guest_close_is_confirmed_at_once_and_loses_nothing_to_a_slow_host() {
    let mut guest = Guest::new();
    let (socket, mut peer) = guest.connect(GUEST_PORT);
    let sent = pattern(usize::try_from(BUFFER_BYTES).unwrap());
    guest.send_data(&socket, &sent[..200_000]);
    guest.send_data(&socket, &sent[200_000..]);
    assert!(
        guest
            .muxer
            .table
            .values()
            .all(|entry| entry.endpoint.has_backlog())
    );
    guest.send(socket.shutdown(Shutdown::BOTH));
    while guest.receive().unwrap().operation() != Operation::Reset {}
    let mut got = Vec::new();
    loop {
        let (bytes, end) = drain(&mut peer);
        got.extend(bytes);
        guest.look();
        if end {
            break;
        }
    }
    assert_eq!(checksum(&got), checksum(&sent));
    assert!(guest.muxer.table.is_empty());
}

#[test]
fn guest_reset_loses_nothing_that_was_sent_before() {
    let mut guest = Guest::new();
    let (socket, mut peer) = guest.connect(GUEST_PORT);
    let sent = pattern(usize::try_from(BUFFER_BYTES).unwrap());
    guest.send_data(&socket, &sent);
    guest.send(socket.header(Operation::Reset));
    guest.expect_nothing();
    // The guest has forgotten the connection, so whatever it says of it now is unknown.
    guest.send(socket.header(Operation::CreditUpdate));
    guest.expect(Operation::Reset);
    let (mut got, mut end) = drain(&mut peer);
    while !end {
        guest.look();
        let more = drain(&mut peer);
        got.extend(more.0);
        end = more.1;
    }
    assert_eq!(checksum(&got), checksum(&sent));
    assert!(guest.muxer.table.is_empty());
}

#[test]
fn host_close_reaches_the_guest_after_the_last_byte_and_frees_the_stream() {
    let mut guest = Guest::new();
    let (socket, mut peer) = guest.connect(GUEST_PORT);
    peer.write_all(b"bye").unwrap();
    drop(peer);
    guest.look();
    assert_eq!(guest.expect(Operation::Data).payload, b"bye");
    let told = guest.expect(Operation::Shutdown).header;
    assert_eq!(told.flags, Shutdown::BOTH.flags());
    guest.send_data(&socket, b"too late");
    guest.expect_nothing();
    assert!(
        guest
            .muxer
            .table
            .values()
            .all(|entry| entry.endpoint.stream().is_none())
    );
    guest.send(socket.header(Operation::Reset));
    assert!(guest.muxer.table.is_empty());
}

#[test]
fn host_close_after_half_close_is_told_too() {
    let mut guest = Guest::new();
    let (_, peer) = guest.connect(GUEST_PORT);
    peer.shutdown(Direction::Write).unwrap();
    guest.look();
    let told = guest.expect(Operation::Shutdown).header;
    assert_eq!(told.flags, Shutdown::SEND.flags());
    drop(peer);
    guest.look();
    let told = guest.expect(Operation::Shutdown).header;
    assert_eq!(told.flags, Shutdown::BOTH.flags());
}

#[test]
fn writing_to_a_host_that_takes_no_more_ends_that_direction_only() {
    let mut guest = Guest::new();
    let (socket, mut peer) = guest.connect(GUEST_PORT);
    peer.shutdown(Direction::Read).unwrap();
    guest.send_data(&socket, b"nobody reads this");
    let told = guest.expect(Operation::Shutdown).header;
    assert_eq!(told.flags, Shutdown::RECEIVE.flags());
    peer.write_all(b"but this").unwrap();
    guest.look();
    assert_eq!(guest.expect(Operation::Data).payload, b"but this");
}

#[test]
fn host_that_closes_without_reading_resets_the_connection() {
    let mut guest = Guest::new();
    let (socket, peer) = guest.connect(GUEST_PORT);
    guest.send_data(&socket, b"unread");
    drop(peer);
    guest.look();
    guest.expect(Operation::Reset);
    assert!(guest.muxer.table.is_empty());
}

#[test]
fn more_than_credit_resets_and_what_came_before_is_delivered() {
    let mut guest = Guest::new();
    let (socket, mut peer) = guest.connect(GUEST_PORT);
    guest.send_data(&socket, b"within");
    guest.send_data(&socket, &pattern(usize::try_from(BUFFER_BYTES).unwrap()));
    guest.expect(Operation::Reset);
    assert_eq!(drain(&mut peer), (b"within".to_vec(), true));
    assert!(guest.muxer.table.is_empty());
}

#[test]
fn packet_shorter_than_it_says_resets_the_connection() {
    let mut guest = Guest::new();
    let (socket, mut peer) = guest.connect(GUEST_PORT);
    guest.send(Header {
        len: 1,
        ..socket.header(Operation::Data)
    });
    guest.expect(Operation::Reset);
    assert_eq!(drain(&mut peer), (Vec::new(), true));
}

#[test]
fn packets_of_no_connection_are_reset_and_resets_are_not() {
    let mut guest = Guest::new();
    let socket = Socket::new(PORT, GUEST_PORT);
    for operation in [Operation::Data, Operation::Shutdown, Operation::Response] {
        guest.send(socket.header(operation));
        guest.expect(Operation::Reset);
    }
    guest.send(socket.header(Operation::Reset));
    guest.expect_nothing();
}

#[test]
fn other_types_and_addresses_are_refused_and_forged_senders_ignored() {
    let mut guest = Guest::new();
    let request = Socket::new(PORT, GUEST_PORT).header(Operation::Request);
    guest.send(Header {
        socket_type: 2,
        ..request
    });
    assert_eq!(guest.expect(Operation::Reset).header.socket_type, 2);
    guest.send(Header {
        src_cid: CID + 1,
        ..request
    });
    guest.expect_nothing();
    guest.send(Header {
        dst_cid: 9,
        ..request
    });
    let mut memory = [0; HEADER_BYTES + 1];
    guest.muxer.send(&Permit::of(&mut memory)).unwrap();
    let reset = Header::from_bytes(memory[..HEADER_BYTES].try_into().unwrap());
    assert_eq!((reset.src_cid, reset.dst_cid), (9, CID));
    assert!(guest.host.accepted().is_none());
}

#[test]
fn second_request_for_a_live_connection_resets_it() {
    let mut guest = Guest::new();
    let (socket, mut peer) = guest.connect(GUEST_PORT);
    guest.send(socket.header(Operation::Request));
    guest.expect(Operation::Reset);
    assert_eq!(drain(&mut peer), (Vec::new(), true));
}

#[test]
fn guest_may_reuse_the_port_of_a_connection_the_host_has_left() {
    let mut guest = Guest::new();
    let (_, peer) = guest.connect(GUEST_PORT);
    drop(peer);
    guest.look();
    guest.expect(Operation::Shutdown);
    let (socket, mut peer) = guest.connect(GUEST_PORT);
    guest.send_data(&socket, b"anew");
    assert_eq!(drain(&mut peer), (b"anew".to_vec(), false));
}

#[test]
fn connections_take_turns() {
    let mut guest = Guest::new();
    let mut peers: Vec<_> = (1..=3).map(|port| guest.connect(port)).collect();
    for (_, peer) in &mut peers {
        peer.write_all(&pattern(10 * 4096)).unwrap();
    }
    guest.look();
    for _ in 0..10 {
        let mut ports: Vec<u32> = (0..3)
            .map(|_| guest.expect(Operation::Data).header.dst_port)
            .collect();
        ports.sort_unstable();
        assert_eq!(ports, [1, 2, 3]);
    }
}

#[test]
fn one_stalled_connection_does_not_hold_up_the_others() {
    let mut guest = Guest::new();
    let (_, mut lively) = guest.connect(1);
    let (_, mut stalled) = guest.connect_with_room(2, 0);
    stalled.write_all(b"waits").unwrap();
    lively.write_all(b"flows").unwrap();
    guest.look();
    let packets: Vec<_> = std::iter::from_fn(|| guest.receive()).collect();
    assert!(packets.iter().any(|packet| packet.payload == b"flows"));
    assert!(packets.iter().all(|packet| packet.payload != b"waits"));
    guest.expect_nothing();
}

#[test]
fn connections_are_limited_and_the_limit_is_a_refusal() {
    let mut guest = Guest::new();
    for port in 0..u32::try_from(CONNECTIONS_MAX).unwrap() {
        let (_, peer) = guest.connect(port);
        drop(peer);
        guest.look();
        guest.expect(Operation::Shutdown);
    }
    guest.send(Socket::new(PORT, 1 << 20).header(Operation::Request));
    guest.expect(Operation::Reset);
    let (ours, mut peer) = UnixStream::pair().unwrap();
    guest.host.connect(GUEST_PORT, ours.into()).unwrap();
    guest.muxer.dial().unwrap();
    assert_eq!(drain(&mut peer), (Vec::new(), true));
    guest.expect_nothing();
}

#[test]
fn connection_beside_many_others_holds_less() {
    let mut guest = Guest::new();
    let mut peers = Vec::new();
    for port in 0..=u32::try_from(LARGE_BUFFERS_MAX).unwrap() {
        guest.send(Socket::new(PORT, port).header(Operation::Request));
        let response = guest.expect(Operation::Response).header;
        let small = peers.len() == LARGE_BUFFERS_MAX;
        let wanted = if small {
            SMALL_BUFFER_BYTES
        } else {
            BUFFER_BYTES
        };
        assert_eq!(response.buf_alloc, wanted, "{port}");
        peers.push(guest.host.accepted().unwrap());
    }
}

#[test]
fn connections_nobody_fetches_are_limited() {
    let mut guest = Guest::new();
    let mut granted = 0;
    for port in 0..100 {
        guest.send(Socket::new(PORT, port).header(Operation::Request));
        granted += usize::from(guest.receive().unwrap().operation() == Operation::Response);
    }
    assert_eq!(granted, 64);
    assert_eq!(guest.muxer.table.len(), 64);
}

#[test]
fn dials_of_a_stopped_device_are_limited() {
    let guest = Guest::new();
    let mut peers = Vec::new();
    let refused = (0..300).find_map(|_| {
        let (ours, peer) = UnixStream::pair().unwrap();
        peers.push(peer);
        guest.host.connect(GUEST_PORT, ours.into()).err()
    });
    assert!(refused.is_some());
    assert_eq!(peers.len(), 257);
}

#[test]
fn resets_without_room_hold_up_the_guests_packets() {
    let mut guest = Guest::new();
    let stray = Socket::new(PORT, GUEST_PORT).header(Operation::Data);
    let mut taken = 0;
    while guest.muxer.may_receive() {
        guest.send(stray);
        taken += 1;
    }
    assert_eq!(taken, RESETS_MAX);
    guest.expect(Operation::Reset);
    assert!(guest.muxer.may_receive());
}

#[test]
fn connecting_and_resetting_without_room_leaves_nothing_behind() {
    let mut guest = Guest::new();
    let socket = Socket::new(PORT, GUEST_PORT);
    for _ in 0..1000 {
        guest.send(socket.header(Operation::Request));
        guest.send(socket.header(Operation::Reset));
        drop(guest.host.accepted());
    }
    assert!(guest.muxer.table.is_empty());
    assert!(guest.muxer.turns.is_empty());
}

#[test]
fn streams_are_quiet_once_looked_at_whatever_their_state() {
    let mut guest = Guest::new();
    let (_, waiting) = guest.dialled();
    let (_, ended) = guest.connect(1);
    let (_, gone) = guest.connect(2);
    let (socket, _unwritten) = guest.connect(3);
    let (_, mut unread) = guest.connect_with_room(4, 0);
    drop((waiting, gone));
    ended.shutdown(Direction::Both).unwrap();
    unread.write_all(b"no room for this").unwrap();
    guest.send_data(&socket, &pattern(usize::try_from(BUFFER_BYTES).unwrap()));
    guest.look();
    while guest.receive().is_some() {}
    guest.look();
    assert!(!guest.has_news());
}

#[test]
fn a_failed_device_refuses_dials_and_closes_those_that_wait() {
    let guest = Guest::new();
    let (ours, mut peer) = UnixStream::pair().unwrap();
    guest.host.connect(GUEST_PORT, ours.into()).unwrap();
    guest.host.ends().fail();
    assert_eq!(drain(&mut peer), (Vec::new(), true));
    let (ours, mut peer) = UnixStream::pair().unwrap();
    assert!(guest.host.connect(GUEST_PORT, ours.into()).is_err());
    assert_eq!(drain(&mut peer), (Vec::new(), true));
}
