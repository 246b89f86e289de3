//! Packets of the socket device: lies in every field, masses of small ones, connections without end.

use crate::log::{Report, say};
use crate::socket::{
    AGENT_PORT, CREDIT_REQUEST, CREDIT_UPDATE, DATA, ENTRIES, Packet, REQUEST, RESET, RESPONSE,
    SHUTDOWN, Socket,
};
use crate::transport::{Device, VSOCK, WRITE, answer_of, request_of};

/// Ports from the agent's on that a VMM with a case for its supervisor has, each to be dialled once; a sandbox's has the first one alone.
const PORTS: u32 = 64;
/// Of these, those for attacks that want a connection of their own.
const CREDIT_PORT: u32 = AGENT_PORT + PORTS - 4;
const STORM_PORT: u32 = CREDIT_PORT - 2;

/// Packets of a storm.
const STORM: u32 = 4_000;
/// Connections that are asked for.
const DIALS: u32 = 1_500;
/// No VMM holds more connections for one guest.
const CONNECTIONS_MAX: u32 = 1024;

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
pub(crate) fn malformed(report: &mut Report) {
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
    addresses(good, &mut try_packet);
    contents(good, &mut try_packet);
    short(report);
    expect_works(report);
}

/// From nobody, to nobody, of another kind.
fn addresses(good: Packet, try_packet: &mut dyn FnMut(Packet)) {
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
}

/// Operations, lengths and flags without sense.
fn contents(good: Packet, try_packet: &mut dyn FnMut(Packet)) {
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
pub(crate) fn ports(report: &mut Report) {
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
pub(crate) fn credit(report: &mut Report) {
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
pub(crate) fn storm(report: &mut Report) {
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
pub(crate) fn dials(report: &mut Report) {
    let granted = dial_many(report);
    report.expect(
        granted <= CONNECTIONS_MAX,
        format_args!("{granted} connections were granted at one time"),
    );
    say!("dials: {granted} granted");
    expect_works(report);
}

/// The same for ever.
pub(crate) fn dials_for_ever(report: &mut Report) {
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
