//! Promises of the device as a whole: registers and rings on one side, sockets on the other, its own thread in between.

mod guest;

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown as Direction;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use super::packet::{HEADER_BYTES, Header, Operation, Shutdown};
use super::*;
use crate::{Confine, Event, GuestMemory, Irq};
use guest::{CID, GUEST_PORT, Guest, PORT};

fn pattern(count: usize) -> Vec<u8> {
    (0..count)
        .map(|at| u8::try_from(at % 251).unwrap())
        .collect()
}

/// A guest that is up and has made a connection, with room for `room` more packets.
fn connected(room: usize) -> (Guest, UnixStream) {
    let mut guest = Guest::new();
    guest.bring_up();
    guest.offer_room(room + 1);
    guest.send(Operation::Request, &[]);
    assert_eq!(guest.receive().0.operation(), Some(Operation::Response));
    let (_, stream) = guest.host.accepted().unwrap();
    (guest, stream.into())
}

/// Waits for the end of a stream that has nothing more to give.
fn ends(mut peer: UnixStream) -> bool {
    let mut bytes = Vec::new();
    match peer.read_to_end(&mut bytes) {
        Ok(_) => bytes.is_empty(),
        Err(error) => error.kind() == ErrorKind::ConnectionReset,
    }
}

fn reads(peer: &mut UnixStream, expected: &[u8]) {
    let mut bytes = vec![0; expected.len()];
    peer.read_exact(&mut bytes).unwrap();
    assert_eq!(bytes, expected);
}

#[test]
fn configuration_is_the_context_id() {
    let (device, _host) = Vsock::new(7, Vec::new()).unwrap();
    let mut config = [0xff; 12];
    device.read_config(0, &mut config);
    assert_eq!(config, [7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
}

#[test]
fn guest_and_host_exchange_bytes_through_the_queues() {
    let (mut guest, mut peer) = connected(1);
    guest.send(Operation::Data, b"ping");
    reads(&mut peer, b"ping");
    peer.write_all(b"pong").unwrap();
    let (header, payload) = guest.receive();
    assert_eq!(header.operation(), Some(Operation::Data));
    assert_eq!((header.src_port, header.dst_port), (PORT, GUEST_PORT));
    assert_eq!(payload, b"pong");
}

#[test]
fn a_stream_given_before_the_start_is_connected_after_it() {
    let mut guest = Guest::new();
    let (ours, _peer) = UnixStream::pair().unwrap();
    guest.host.connect(GUEST_PORT, ours.into()).unwrap();
    guest.bring_up();
    guest.offer_room(1);
    let request = guest.receive().0;
    assert_eq!(request.operation(), Some(Operation::Request));
    assert_eq!(request.dst_port, GUEST_PORT);
}

#[test]
fn a_guest_without_room_delays_its_bytes_and_loses_none() {
    let (mut guest, mut peer) = connected(0);
    peer.write_all(b"patience").unwrap();
    // Taken in spite of it: the other direction is not held up.
    guest.send(Operation::Data, b"meanwhile");
    reads(&mut peer, b"meanwhile");
    guest.offer_room(1);
    assert_eq!(guest.receive().1, b"patience");
}

#[test]
fn megabytes_arrive_whole_both_ways_with_pauses_in_between() {
    let (mut guest, peer) = connected(4);
    let sent = pattern(2 << 20);
    let echo = std::thread::spawn(move || {
        let (mut from, mut to) = (&peer, &peer);
        io::copy(&mut from, &mut to).unwrap();
        peer.shutdown(Direction::Write).unwrap();
    });
    let mut at = 0;
    let mut got = Vec::new();
    let mut rounds = 0;
    while got.len() < sent.len() {
        // Half the window goes out before anything is taken in.
        while at < sent.len() && at - got.len() < 128 * 1024 {
            let end = sent.len().min(at + 30_000);
            guest.send(Operation::Data, &sent[at..end]);
            at = end;
        }
        let (header, payload) = guest.receive();
        guest.offer_room(1);
        match header.operation() {
            Some(Operation::Data) => got.extend(payload),
            Some(Operation::CreditUpdate | Operation::CreditRequest) => {}
            other => panic!("{other:?}"),
        }
        guest.forwarded = u32::try_from(got.len()).unwrap();
        guest.send(Operation::CreditUpdate, &[]);
        rounds += 1;
        if rounds % 50 == 0 {
            guest.pause_and_resume();
        }
    }
    assert!(got == sent);
    guest.send_shutdown(Shutdown::SEND);
    while guest.receive().0.operation() != Some(Operation::Shutdown) {
        guest.offer_room(1);
    }
    echo.join().unwrap();
}

#[test]
fn what_happens_during_a_pause_is_seen_after_it() {
    let (mut guest, mut peer) = connected(2);
    guest.driver.transport.pause();
    peer.write_all(b"while paused").unwrap();
    let (ours, _other) = UnixStream::pair().unwrap();
    guest.host.connect(GUEST_PORT, ours.into()).unwrap();
    guest.send(Operation::Data, b"sent while paused");
    guest.driver.transport.resume();
    reads(&mut peer, b"sent while paused");
    let mut packets = [guest.receive(), guest.receive()];
    packets.sort_by_key(|(header, _)| header.op);
    assert_eq!(packets[0].0.operation(), Some(Operation::Request));
    assert_eq!(packets[1].1, b"while paused");
}

#[test]
fn a_reset_of_the_device_closes_all_connections() {
    let (mut guest, peer) = connected(0);
    guest.driver.reset();
    guest.bring_up();
    assert!(ends(peer));
}

#[test]
fn a_guest_restored_elsewhere_is_told_once_that_its_connections_are_gone() {
    let mut guest = Guest::restored();
    guest.bring_up();
    // Not lost when there is no room for it at first.
    guest.pause_and_resume();
    guest.offer_event_room();
    assert_eq!(guest.event(), [0; 4]);
    guest.pause_and_resume();
    guest.offer_event_room();
    guest.offer_room(1);
    guest.send(Operation::Data, b"of a connection from before");
    assert_eq!(guest.receive().0.operation(), Some(Operation::Reset));
    assert!(!guest.has_event());
}

#[test]
fn a_chain_without_a_header_fails_the_device_and_closes_its_connections() {
    let (mut guest, peer) = connected(0);
    guest.send_bytes(&[0; HEADER_BYTES - 1]);
    assert!(ends(peer));
    guest.driver.wait_needs_reset();
    let (ours, peer) = UnixStream::pair().unwrap();
    assert!(guest.host.connect(GUEST_PORT, ours.into()).is_err());
    assert!(ends(peer));
    guest.driver.reset();
    guest.bring_up();
    guest.offer_room(1);
    let (ours, _peer) = UnixStream::pair().unwrap();
    guest.host.connect(GUEST_PORT, ours.into()).unwrap();
    assert_eq!(guest.receive().0.operation(), Some(Operation::Request));
}

#[test]
fn room_too_small_for_a_packet_fails_the_device() {
    let (mut guest, peer) = connected(0);
    guest.offer_room_of(44);
    guest.send(Operation::CreditRequest, &[]);
    assert!(ends(peer));
    guest.driver.wait_needs_reset();
}

#[test]
fn a_ring_that_makes_no_sense_fails_the_device() {
    let (mut guest, peer) = connected(0);
    guest.driver.lie_about_available(1, 100);
    assert!(ends(peer));
    guest.driver.wait_needs_reset();
}

#[test]
fn the_device_needs_all_its_queues_and_its_own_state() {
    let (mut device, _host) = Vsock::new(3, Vec::new()).unwrap();
    let resources = |saved| Resources {
        memory: Arc::new(GuestMemory::new()),
        queues: vec![None, None, None],
        irq: Arc::new(Irq::new(Event::new().unwrap())),
        features: 0,
        saved,
        confine: Confine::none(),
        failure: Arc::default(),
    };
    assert!(matches!(
        device.start(resources(SavedDevice::Fresh)),
        Err(StartError::MissingQueue { index: 0 })
    ));
    assert!(matches!(
        device.start(resources(SavedDevice::FsSession {
            pause: 0,
            init: None
        })),
        Err(StartError::WrongState)
    ));
    assert!(device.stop().is_none());
}

#[test]
fn forged_headers_harm_no_other_connection() {
    let (mut guest, mut peer) = connected(7);
    for seed in 1..5000u32 {
        let mut state = seed.wrapping_mul(2_654_435_761);
        let mut bytes: [u8; 60] = std::array::from_fn(|_| {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            state.to_le_bytes()[1]
        });
        // Often right where it must be right to get further.
        let mut header = Header::from_bytes(bytes[..HEADER_BYTES].try_into().unwrap());
        if seed % 3 != 0 {
            header.src_cid = CID;
            header.dst_cid = 2;
            header.socket_type = 1;
            header.src_port %= 4;
            header.dst_port = PORT;
            header.op %= 9;
            header.len %= 32;
        }
        bytes[..HEADER_BYTES].copy_from_slice(&header.to_bytes());
        guest.send_bytes(&bytes);
        drop(guest.host.accepted());
        while guest.received().is_some() {
            guest.offer_room(1);
        }
    }
    guest.send(Operation::Data, b"still here");
    reads(&mut peer, b"still here");
}
