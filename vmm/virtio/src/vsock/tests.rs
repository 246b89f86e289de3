//! Promises of the device as a whole: rings in memory on one side, sockets on the other, its own thread in between.

mod driver;

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;

use super::packet::{Header, Operation, Shutdown};
use super::*;
use driver::{CID, Machine, PORT};

const GUEST_PORT: u32 = 7000;
/// What a Linux guest offers.
const RX_BYTES: u32 = 4096;

fn pattern(count: usize) -> Vec<u8> {
    (0..count)
        .map(|at| u8::try_from(at % 251).unwrap())
        .collect()
}

/// A started machine with a connection its guest has made.
fn connected(rx_buffers: u16) -> (Machine, UnixStream) {
    let mut machine = Machine::new();
    machine.start(SavedDevice::Fresh);
    machine.offer_room(rx_buffers, RX_BYTES);
    machine.send(Operation::Request, &[]);
    assert_eq!(machine.receive().0.operation(), Some(Operation::Response));
    let (_, stream) = machine.host.accepted().unwrap();
    (machine, stream.into())
}

/// Waits for the end of a stream that has nothing more to give.
fn ends(mut peer: UnixStream) -> bool {
    let mut bytes = Vec::new();
    match peer.read_to_end(&mut bytes) {
        Ok(_) => bytes.is_empty(),
        Err(error) => error.kind() == ErrorKind::ConnectionReset,
    }
}

#[test]
fn configuration_is_the_context_id() {
    let machine = Machine::new();
    let mut config = [0xff; 12];
    machine.device.read_config(0, &mut config);
    assert_eq!(config[..8], CID.to_le_bytes());
    assert_eq!(config[8..], [0; 4]);
}

#[test]
fn guest_and_host_exchange_bytes_through_the_queues() {
    let (mut machine, mut peer) = connected(8);
    machine.send(Operation::Data, b"ping");
    let mut bytes = [0; 4];
    peer.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"ping");
    peer.write_all(b"pong").unwrap();
    let (header, payload) = machine.receive();
    assert_eq!(header.operation(), Some(Operation::Data));
    assert_eq!((header.src_port, header.dst_port), (PORT, GUEST_PORT));
    assert_eq!(payload, b"pong");
}

#[test]
fn packets_may_be_cut_anywhere() {
    let mut machine = Machine::new();
    machine.start(SavedDevice::Fresh);
    machine.offer_room_in_pieces(&[1, 20, 22, 3, 50]);
    machine.offer_room_in_pieces(&[44, 5, 5]);
    machine.send_in_pieces(Operation::Request, &[], &[43, 1]);
    assert_eq!(machine.receive().0.operation(), Some(Operation::Response));
    let mut peer = UnixStream::from(machine.host.accepted().unwrap().1);
    machine.send_in_pieces(Operation::Data, b"abcdef", &[10, 36, 1, 3]);
    let mut bytes = [0; 6];
    peer.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"abcdef");
    peer.write_all(b"0123456789").unwrap();
    assert_eq!(machine.receive().1, b"0123456789");
}

#[test]
fn a_stream_given_before_the_start_is_connected_after_it() {
    let mut machine = Machine::new();
    let (ours, _peer) = UnixStream::pair().unwrap();
    machine.host.connect(GUEST_PORT, ours.into()).unwrap();
    machine.start(SavedDevice::Fresh);
    machine.offer_room(1, RX_BYTES);
    let request = machine.receive().0;
    assert_eq!(request.operation(), Some(Operation::Request));
    assert_eq!(request.dst_port, GUEST_PORT);
}

#[test]
fn a_guest_without_room_delays_its_bytes_and_loses_none() {
    let (mut machine, mut peer) = connected(1);
    peer.write_all(b"patience").unwrap();
    // Taken in spite of it: the other direction is not held up.
    machine.send(Operation::Data, b"meanwhile");
    let mut bytes = [0; 9];
    peer.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"meanwhile");
    machine.offer_room(1, RX_BYTES);
    assert_eq!(machine.receive().1, b"patience");
}

#[test]
fn megabytes_arrive_whole_both_ways_with_pauses_in_between() {
    let (mut machine, peer) = connected(16);
    let sent = pattern(2 << 20);
    let echo = std::thread::spawn(move || {
        let (mut from, mut to) = (&peer, &peer);
        io::copy(&mut from, &mut to).unwrap();
        peer.shutdown(std::net::Shutdown::Write).unwrap();
    });
    let mut at = 0;
    let mut got = Vec::new();
    let mut rounds = 0;
    while got.len() < sent.len() {
        // Half the window goes out before anything is taken in.
        while at < sent.len() && at - got.len() < 128 * 1024 {
            let end = sent.len().min(at + 32 * 1024);
            machine.send(Operation::Data, &sent[at..end]);
            at = end;
        }
        let (header, payload) = machine.receive();
        match header.operation() {
            Some(Operation::Data) => got.extend(payload),
            Some(Operation::CreditUpdate | Operation::CreditRequest) => {}
            other => panic!("{other:?}"),
        }
        machine.forwarded = u32::try_from(got.len()).unwrap();
        machine.send(Operation::CreditUpdate, &[]);
        machine.offer_room(1, RX_BYTES);
        rounds += 1;
        if rounds % 50 == 0 {
            machine.pause_and_resume();
        }
    }
    assert!(got == sent);
    machine.send_shutdown(Shutdown::SEND);
    loop {
        let (header, _) = machine.receive();
        if header.operation() == Some(Operation::Shutdown) {
            break;
        }
        machine.offer_room(1, RX_BYTES);
    }
    echo.join().unwrap();
}

#[test]
fn what_happens_during_a_pause_is_seen_after_it() {
    let (mut machine, mut peer) = connected(4);
    let saved = machine.stop();
    assert_eq!(saved, SavedDevice::Vsock);
    peer.write_all(b"while paused").unwrap();
    let (ours, _other) = UnixStream::pair().unwrap();
    machine.host.connect(GUEST_PORT, ours.into()).unwrap();
    machine.send(Operation::Data, b"sent while paused");
    machine.start(saved);
    let mut bytes = [0; 17];
    peer.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"sent while paused");
    let mut packets = [machine.receive(), machine.receive()];
    packets.sort_by_key(|(header, _)| header.op);
    assert_eq!(packets[0].0.operation(), Some(Operation::Request));
    assert_eq!(packets[1].1, b"while paused");
}

#[test]
fn a_reset_of_the_device_closes_all_connections() {
    let (mut machine, peer) = connected(4);
    machine.stop();
    machine.start(SavedDevice::Fresh);
    assert!(ends(peer));
}

#[test]
fn a_guest_restored_elsewhere_is_told_that_its_connections_are_gone() {
    let mut machine = Machine::new();
    machine.start(SavedDevice::Vsock);
    machine.offer_event_room();
    assert_eq!(machine.event(), [0; 4]);
    // Told once, not at every pause.
    machine.pause_and_resume();
    machine.offer_event_room();
    machine.offer_room(1, RX_BYTES);
    machine.send(Operation::Data, b"of a connection from before");
    assert_eq!(machine.receive().0.operation(), Some(Operation::Reset));
    assert!(!machine.has_event());
}

#[test]
fn a_reset_owed_to_a_restored_guest_survives_a_pause() {
    let mut machine = Machine::new();
    machine.start(SavedDevice::Vsock);
    machine.pause_and_resume();
    machine.offer_event_room();
    assert_eq!(machine.event(), [0; 4]);
}

#[test]
fn a_chain_without_a_header_fails_the_device_and_closes_its_connections() {
    let (mut machine, peer) = connected(4);
    machine.send_raw(&[0; 43]);
    assert!(ends(peer));
    machine.wait_for_failure();
    let (ours, peer) = UnixStream::pair().unwrap();
    assert!(machine.host.connect(GUEST_PORT, ours.into()).is_err());
    assert!(ends(peer));
    machine.stop();
    machine.start(SavedDevice::Fresh);
    let (ours, _peer) = UnixStream::pair().unwrap();
    machine.host.connect(GUEST_PORT, ours.into()).unwrap();
    assert_eq!(machine.receive().0.operation(), Some(Operation::Request));
}

#[test]
fn room_too_small_for_a_packet_fails_the_device() {
    let (mut machine, peer) = connected(1);
    machine.offer_room(1, 44);
    machine.send(Operation::CreditRequest, &[]);
    assert!(ends(peer));
    machine.wait_for_failure();
}

#[test]
fn a_buffer_outside_memory_fails_the_device() {
    let (mut machine, peer) = connected(1);
    machine.offer_buffer_at(u64::MAX - 4096);
    machine.send(Operation::CreditRequest, &[]);
    assert!(ends(peer));
    machine.wait_for_failure();
}

#[test]
fn the_device_needs_all_its_queues_and_its_own_state() {
    let mut machine = Machine::new();
    let mut resources = machine.resources(SavedDevice::Fresh);
    resources.queues[2] = None;
    assert!(matches!(
        machine.device.start(resources),
        Err(StartError::MissingQueue { index: 2 })
    ));
    let resources = machine.resources(SavedDevice::FsSession { pause: 0 });
    assert!(matches!(
        machine.device.start(resources),
        Err(StartError::WrongState)
    ));
    assert!(machine.device.stop().is_none());
}

#[test]
fn forged_headers_harm_nobody() {
    let (mut machine, mut peer) = connected(128);
    for seed in 0..5000u32 {
        let mut bytes = [0; 60];
        let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(1);
        for byte in &mut bytes {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            *byte = state.to_le_bytes()[1];
        }
        // Often right where it must be right to get further.
        let mut header = Header::from_bytes(bytes[..44].try_into().unwrap());
        if seed % 3 != 0 {
            header.src_cid = CID;
            header.dst_cid = 2;
            header.socket_type = 1;
            header.src_port %= 4;
            header.dst_port = PORT;
            header.op %= 9;
            header.len %= 32;
        }
        bytes[..44].copy_from_slice(&header.to_bytes());
        machine.send_raw(&bytes);
        drop(machine.host.accepted());
        machine.take_all_and_offer_again(RX_BYTES);
    }
    machine.send(Operation::Data, b"still here");
    let mut bytes = [0; 10];
    peer.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"still here");
}
