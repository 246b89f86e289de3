//! The agent's part, played badly: the supervisor's port is dialled as the agent does, and its requests are answered with what is no answer.
//!
//! The protocol is ttrpc: a header of length (4 bytes, big endian), stream (4), type (1: request, 2: response, 3: data) and flags (1), then as many
//! bytes of protobuf.

use crate::cpu;
use crate::log::{Report, say};
use crate::socket::{AGENT_PORT, DATA, Packet, REQUEST, RESPONSE, Socket};

/// The port that the agent dials from.
const PORT: u32 = 4242;
/// Bytes of a packet here.
const CHUNK: usize = 1900;
/// Frames of each kind.
const FRAMES: u32 = 400;
/// Bytes sent in all, beyond which the supervisor has had enough of it.
const FLOOD: u32 = 6 << 20;

struct Line {
    socket: Socket,
    forwarded: u32,
}

impl Line {
    /// Sends bytes; false when the other side has gone.
    fn send(&mut self, bytes: &[u8]) -> bool {
        for chunk in bytes.chunks(CHUNK) {
            let mut packet = Packet::new(DATA, PORT, AGENT_PORT);
            packet.len = chunk.len() as u32;
            packet.fwd_cnt = self.forwarded;
            if !self.socket.send(&packet, chunk) {
                return false;
            }
            self.socket.settle();
            // Its credit is the device's to check: a reset tells that it was too much.
            if self.socket.came[3] > 0 || self.socket.came[4] > 0 {
                return false;
            }
        }
        true
    }

    fn frame(&mut self, stream: u32, kind: u8, flags: u8, length: u32, body: &[u8]) -> bool {
        let mut header = [0; 10];
        header[..4].copy_from_slice(&length.to_be_bytes());
        header[4..8].copy_from_slice(&stream.to_be_bytes());
        header[8..].copy_from_slice(&[kind, flags]);
        self.send(&header) && self.send(body)
    }
}

/// Dials, waits for the first request, and answers with garbage until the supervisor hangs up.
pub(crate) fn replies(report: &mut Report) {
    let Some(mut socket) = Socket::new() else {
        return report.wrong(format_args!("there is no socket device"));
    };
    let answer = socket.ask(&Packet::new(REQUEST, PORT, AGENT_PORT), b"");
    report.expect(
        answer == RESPONSE,
        format_args!("the agent's dial was answered by {answer}"),
    );
    let request = cpu::wait(|| {
        socket.drain();
        (cpu::read16(socket.last.0 + 30) == DATA).then_some(socket.last)
    });
    let Some((at, length)) = request else {
        return report.wrong(format_args!("no request came"));
    };
    let stream = u32::from_be(cpu::read32(at + 44 + 4));
    say!("agent: a request of {length} bytes on stream {stream}");
    let mut line = Line {
        socket,
        forwarded: length - 44,
    };
    let told = answer_badly(report, &mut line, stream);
    say!(
        "agent: {}",
        if told {
            "the supervisor took all of it"
        } else {
            "the supervisor hung up"
        }
    );
}

fn answer_badly(report: &mut Report, line: &mut Line, stream: u32) -> bool {
    static ONES: [u8; 4096] = [0xff; 4096];
    for count in 0..FRAMES {
        report.tried();
        // Answers to nothing, data of no stream, requests to a client, types that nobody knows.
        let kind = [2, 3, 1, 0, 255][count as usize % 5];
        if !line.frame(count * 7 + 1000, kind, count as u8, 32, &ONES[..32]) {
            return false;
        }
    }
    // The right stream, with bytes that are no message.
    if !line.frame(stream, 2, 0, 4096, &ONES) {
        return false;
    }
    // The longest message there is, and one byte more, and one without an end.
    for length in [4 << 20, (4 << 20) + 1, u32::MAX] {
        report.tried();
        if !line.frame(stream, 2, 0, length, b"") {
            return false;
        }
        for _ in 0..FLOOD / 3 / ONES.len() as u32 {
            if !line.send(&ONES) {
                return false;
            }
        }
    }
    true
}
