//! A connection whose other end sends what it likes.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};

use super::*;

const EVENTS: u32 = 5;

fn frame(length: usize, stream: u32, kind: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = u32::try_from(length).unwrap().to_be_bytes().to_vec();
    bytes.extend(stream.to_be_bytes());
    bytes.extend([kind, 0]);
    bytes.extend(body);
    bytes
}

fn event(body: &[u8]) -> Vec<u8> {
    frame(body.len(), EVENTS, ITEM, body)
}

/// A gate through which the events have been asked for, and the agent's end.
async fn gate() -> (Gate<DuplexStream>, Link, DuplexStream) {
    let (near, far) = duplex(64 * 1024);
    let link = Link::default();
    let mut gate = Gate::new(near, link.clone());
    let mut request = frame(3, EVENTS, REQUEST, b"abc");
    request[HEADER_BYTES - 1] = CLOSED;
    // In pieces, as ttrpc writes them.
    for piece in request.chunks(4) {
        gate.write_all(piece).await.unwrap();
    }
    (gate, link, far)
}

#[tokio::test]
async fn whole_frames_pass_as_they_are() {
    let (mut gate, _link, mut agent) = gate().await;
    let reply = frame(2, 1, REPLY, &[0x12, 0]);
    let sent = [reply, event(b"x"), event(b"")].concat();
    for piece in sent.chunks(3) {
        agent.write_all(piece).await.unwrap();
    }
    let mut seen = vec![0; sent.len()];
    gate.read_exact(&mut seen).await.unwrap();
    assert_eq!(seen, sent);
    drop(agent);
    assert_eq!(gate.read(&mut seen).await.unwrap(), 0);
}

#[tokio::test]
async fn events_wait_until_those_before_are_acted_on() {
    let (mut gate, link, mut agent) = gate().await;
    let one = event(b"x");
    let flood = one.repeat(limits::EVENTS_AHEAD_MAX + 2);
    agent.write_all(&flood).await.unwrap();
    let mut seen = vec![0; one.len() * limits::EVENTS_AHEAD_MAX];
    gate.read_exact(&mut seen).await.unwrap();
    let mut more = vec![0; one.len()];
    let mut next = Box::pin(gate.read_exact(&mut more));
    // Not by time: the read has nothing to wait for but a credit.
    for _ in 0..100 {
        tokio::select! {
            biased;
            _ = &mut next => panic!("an event without a credit"),
            () = tokio::task::yield_now() => {}
        }
    }
    drop(link.credit());
    next.await.unwrap();
}

#[tokio::test]
async fn what_no_agent_sends_ends_the_connection_with_a_reason() {
    let too_long = limits::EVENT_MAX_BYTES + 1;
    for (sent, violation) in [
        (frame(0, 1, REQUEST, b""), Violation::Kind(REQUEST)),
        (frame(0, 7, ITEM, b""), Violation::Stream(7)),
        (
            frame(too_long, EVENTS, ITEM, b""),
            Violation::Length {
                length: too_long,
                max: limits::EVENT_MAX_BYTES,
            },
        ),
        (
            frame(limits::REPLY_MAX_BYTES + 1, 1, REPLY, b""),
            Violation::Length {
                length: limits::REPLY_MAX_BYTES + 1,
                max: limits::REPLY_MAX_BYTES,
            },
        ),
        (
            frame(4, 1, REPLY, &[0x0a, 2, 0x1a, 0]),
            Malformed::new("a status", crate::guest::Why::Unknown).into(),
        ),
    ] {
        let (mut gate, link, mut agent) = gate().await;
        agent.write_all(&sent).await.unwrap();
        assert!(gate.read(&mut [0; 1]).await.is_err(), "{violation}");
        assert_eq!(link.violation(), Some(&violation));
    }
}
