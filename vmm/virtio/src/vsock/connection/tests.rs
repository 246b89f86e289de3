//! Promises of the state machine and of credit, packet by packet.

use super::*;

/// What a guest with much room sends.
fn packet(operation: Operation) -> Header {
    Header {
        op: operation as u16,
        buf_alloc: 1 << 20,
        ..Header::default()
    }
}

fn data(len: u32) -> Header {
    Header {
        len,
        ..packet(Operation::Data)
    }
}

fn shutdown(directions: Shutdown) -> Header {
    Header {
        flags: directions.flags(),
        ..packet(Operation::Shutdown)
    }
}

/// Sends what is next, whatever it is; None when there is nothing.
fn send(connection: &mut Connection, readable: bool) -> Option<Header> {
    let outgoing = connection.next(readable)?;
    let mut header = Header::default();
    let len = match outgoing {
        Outgoing::Data { limit } => limit,
        _ => 0,
    };
    connection.sent(outgoing, len, &mut header);
    Some(header)
}

fn operation(header: Option<Header>) -> Option<Operation> {
    header.and_then(|header| header.operation())
}

fn established() -> Connection {
    let mut connection = Connection::accepted(&packet(Operation::Request));
    let response = send(&mut connection, true);
    assert_eq!(operation(response), Some(Operation::Response));
    connection
}

#[test]
fn host_connection_asks_once_and_sends_data_only_after_the_response() {
    let mut connection = Connection::requested();
    let request = send(&mut connection, true).unwrap();
    assert_eq!(request.operation(), Some(Operation::Request));
    assert_eq!(request.buf_alloc, BUFFER_BYTES);
    assert_eq!(connection.next(true), None);
    connection.receive(&packet(Operation::Response));
    assert_eq!(
        connection.next(true),
        Some(Outgoing::Data { limit: 1 << 20 })
    );
}

#[test]
fn refused_host_connection_is_forgotten_without_an_answer() {
    let mut connection = Connection::requested();
    send(&mut connection, false);
    connection.receive(&packet(Operation::Reset));
    assert!(connection.is_forgotten());
    assert_eq!(connection.next(true), None);
}

#[test]
fn any_other_answer_to_a_request_is_reset() {
    for op in [4, 5, 6, 7, 1, 0, 99] {
        let mut connection = Connection::requested();
        send(&mut connection, false);
        connection.receive(&Header {
            op,
            ..Header::default()
        });
        assert_eq!(connection.next(false), Some(Outgoing::Reset), "op {op}");
    }
}

#[test]
fn never_more_is_sent_than_the_guest_can_hold() {
    let mut connection = Connection::accepted(&Header {
        buf_alloc: 100,
        ..packet(Operation::Request)
    });
    send(&mut connection, true);
    assert_eq!(send(&mut connection, true).unwrap().len, 100);
    let asked = send(&mut connection, true);
    assert_eq!(operation(asked), Some(Operation::CreditRequest));
    assert_eq!(connection.next(true), None, "asks once");
    connection.receive(&Header {
        buf_alloc: 100,
        fwd_cnt: 30,
        ..packet(Operation::CreditUpdate)
    });
    assert_eq!(connection.next(true), Some(Outgoing::Data { limit: 30 }));
}

#[test]
fn an_update_without_credit_is_not_asked_for_again() {
    let mut connection = Connection::accepted(&Header {
        buf_alloc: 0,
        ..packet(Operation::Request)
    });
    send(&mut connection, true);
    send(&mut connection, true);
    connection.receive(&Header {
        buf_alloc: 0,
        ..packet(Operation::CreditUpdate)
    });
    assert_eq!(connection.next(true), None);
}

#[test]
fn a_guest_that_tells_of_credit_unasked_is_not_asked() {
    let mut connection = Connection::accepted(&Header {
        buf_alloc: 100,
        ..packet(Operation::Request)
    });
    send(&mut connection, true);
    let update = |connection: &mut Connection, fwd_cnt| {
        connection.receive(&Header {
            buf_alloc: 100,
            fwd_cnt,
            ..packet(Operation::CreditUpdate)
        });
    };
    // Asked every time while it does nothing but answer.
    for forwarded in [100, 110] {
        assert_eq!(
            operation(send(&mut connection, true)),
            Some(Operation::Data)
        );
        let asked = send(&mut connection, true);
        assert_eq!(operation(asked), Some(Operation::CreditRequest));
        update(&mut connection, forwarded);
    }
    update(&mut connection, 150);
    assert_eq!(
        operation(send(&mut connection, true)),
        Some(Operation::Data)
    );
    assert_eq!(connection.next(true), None);
}

#[test]
fn a_guest_that_claims_to_have_passed_on_what_it_never_got_gets_nothing() {
    let mut connection = established();
    connection.receive(&Header {
        fwd_cnt: 1,
        ..packet(Operation::CreditUpdate)
    });
    assert_eq!(connection.next(true), None);
}

#[test]
fn credit_counts_on_across_two_to_the_thirty_two() {
    let mut connection = established();
    connection.outbound.sent = u32::MAX - 9;
    connection.outbound.peer_forwarded = u32::MAX - 9;
    connection.outbound.peer_buffer = 50;
    assert_eq!(send(&mut connection, true).unwrap().len, 50);
    connection.receive(&Header {
        buf_alloc: 50,
        fwd_cnt: 20,
        ..packet(Operation::CreditUpdate)
    });
    assert_eq!(connection.next(true), Some(Outgoing::Data { limit: 30 }));

    connection.inbound = Inbound {
        buffer: BUFFER_BYTES,
        received: u32::MAX - 9,
        forwarded: u32::MAX - 9,
        told: u32::MAX - 9,
        update_requested: false,
    };
    assert_eq!(connection.receive(&data(BUFFER_BYTES)), Received::Data);
    connection.forwarded(BUFFER_BYTES);
    let update = send(&mut connection, false).unwrap();
    assert_eq!(update.operation(), Some(Operation::CreditUpdate));
    assert_eq!(update.fwd_cnt, BUFFER_BYTES - 10);
}

#[test]
fn a_guest_may_use_all_its_credit_and_not_one_byte_more() {
    let mut connection = established();
    assert_eq!(connection.receive(&data(BUFFER_BYTES - 1)), Received::Data);
    assert_eq!(connection.receive(&data(1)), Received::Data);
    assert_eq!(connection.receive(&data(1)), Received::Control);
    assert_eq!(connection.next(false), Some(Outgoing::Reset));
}

#[test]
fn credit_counts_from_what_the_guest_was_told_not_from_what_was_passed_on() {
    let mut connection = established();
    connection.receive(&data(BUFFER_BYTES));
    connection.forwarded(BUFFER_BYTES / 4);
    assert_eq!(connection.receive(&data(1)), Received::Control);
    assert_eq!(connection.next(false), Some(Outgoing::Reset));
}

#[test]
fn the_guest_hears_of_passed_on_bytes_before_it_runs_dry() {
    let mut connection = established();
    connection.receive(&data(BUFFER_BYTES));
    connection.forwarded(BUFFER_BYTES / 2 - 1);
    assert_eq!(connection.next(false), None);
    connection.forwarded(1);
    let update = send(&mut connection, false).unwrap();
    assert_eq!(update.operation(), Some(Operation::CreditUpdate));
    assert_eq!(update.fwd_cnt, BUFFER_BYTES / 2);
    assert_eq!(connection.next(false), None);
}

#[test]
fn a_request_for_credit_is_answered_at_once() {
    let mut connection = established();
    connection.receive(&data(10));
    connection.forwarded(10);
    connection.receive(&packet(Operation::CreditRequest));
    let update = send(&mut connection, false).unwrap();
    assert_eq!(update.operation(), Some(Operation::CreditUpdate));
    assert_eq!((update.fwd_cnt, update.buf_alloc), (10, BUFFER_BYTES));
}

#[test]
fn guest_half_close_leaves_the_other_direction_open() {
    let mut connection = established();
    connection.receive(&shutdown(Shutdown::SEND));
    assert!(connection.guest_ended_sending() && !connection.guest_ended_receiving());
    assert!(matches!(connection.next(true), Some(Outgoing::Data { .. })));
    assert_eq!(connection.receive(&data(1)), Received::Control);
    assert_eq!(
        connection.next(true),
        Some(Outgoing::Reset),
        "bytes after the end"
    );
}

#[test]
fn guest_that_takes_no_more_gets_no_more() {
    let mut connection = established();
    connection.receive(&shutdown(Shutdown::RECEIVE));
    assert!(connection.guest_ended_receiving() && !connection.guest_ended_sending());
    assert_eq!(connection.next(true), None);
    assert_eq!(connection.receive(&data(1)), Received::Data);
}

#[test]
fn guest_close_is_answered_by_reset_in_one_step_or_in_two() {
    let mut at_once = established();
    at_once.receive(&shutdown(Shutdown::BOTH));
    assert_eq!(operation(send(&mut at_once, true)), Some(Operation::Reset));
    assert!(at_once.is_forgotten());

    let mut in_turn = established();
    in_turn.receive(&shutdown(Shutdown::RECEIVE));
    in_turn.receive(&shutdown(Shutdown::SEND));
    assert_eq!(in_turn.next(true), Some(Outgoing::Reset));
}

#[test]
fn host_half_close_is_told_once() {
    let mut connection = established();
    connection.host_ends_sending();
    let told = send(&mut connection, false).unwrap();
    assert_eq!(told.operation(), Some(Operation::Shutdown));
    assert_eq!(told.flags, Shutdown::SEND.flags());
    assert_eq!(connection.next(false), None);
    assert_eq!(connection.receive(&data(1)), Received::Data);
}

#[test]
fn host_gone_is_told_and_waits_for_the_guest() {
    let mut connection = established();
    connection.host_ends_sending();
    connection.host_ends_receiving();
    assert!(connection.host_is_gone());
    let told = send(&mut connection, false).unwrap();
    assert_eq!(told.flags, Shutdown::BOTH.flags());
    assert_eq!(
        connection.receive(&data(5)),
        Received::Control,
        "was on its way, has no taker"
    );
    assert!(!connection.is_ended());
    connection.receive(&packet(Operation::Reset));
    assert!(connection.is_forgotten());
}

#[test]
fn nothing_follows_a_reset_in_either_direction() {
    let mut connection = established();
    connection.reset();
    connection.receive(&data(1));
    connection.receive(&packet(Operation::CreditRequest));
    assert_eq!(
        operation(send(&mut connection, true)),
        Some(Operation::Reset)
    );
    assert_eq!(connection.next(true), None);
}

#[test]
fn connection_with_a_small_buffer_says_so_and_holds_the_guest_to_it() {
    let accepted = Connection::accepted(&packet(Operation::Request));
    let mut connection = accepted.with_buffer(SMALL_BUFFER_BYTES);
    let mut header = Header::default();
    connection.sent(Outgoing::Response, 0, &mut header);
    assert_eq!(header.buf_alloc, SMALL_BUFFER_BYTES);
    assert_eq!(
        connection.receive(&data(SMALL_BUFFER_BYTES)),
        Received::Data
    );
    connection.forwarded(SMALL_BUFFER_BYTES / 2);
    assert_eq!(connection.next(false), Some(Outgoing::CreditUpdate));
    connection.receive(&data(1));
    assert!(connection.is_ended());
}
