//! One stream connection between a guest port and the host: its states and its credit. No I/O.
//!
//! Primer (virtio 1.2, section 5.10.6). Host and guest exchange packets about a connection, named by its two ports:
//!
//! - `REQUEST` asks for a connection; `RESPONSE` grants it, `RST` refuses it. `RST` ends it at once at any later time.
//! - `RW` carries bytes. Nobody may send more than the other can hold (section 5.10.6.3): every packet says how much the sender's buffer
//!   holds (`buf_alloc`) and how much it has passed on so far (`fwd_cnt`), so the other's credit is
//!   `buf_alloc - (bytes sent - fwd_cnt)`, all modulo 2³². `CREDIT_UPDATE` says the same without bytes, `CREDIT_REQUEST` asks for it.
//! - `SHUTDOWN` ends one direction or both, for good (section 5.10.6.5). Once both are ended the receiver answers with `RST`.
//!
//! ```text
//!                        ┌───────────┐ RESPONSE
//!   host connects ──────►│ Requested ├──────────┐
//!                        └─────┬─────┘          ▼
//!                              │         ┌─────────────┐◄───── REQUEST from the guest
//!                  RST, or any │         │ Established │
//!                  other packet│         └──────┬──────┘
//!                              ▼                │ the guest: RST, SHUTDOWN of both, or a broken rule
//!                        ┌───────────┐          │ the host's stream: broken
//!                        │   Ended   │◄─────────┘
//!                        └───────────┘
//! ```
//!
//! Happy path: established, bytes both ways, each side ends its direction, the side that ends last is answered by `RST`. When the host's
//! peer is gone, the guest is told by a `SHUTDOWN` of both and the connection waits for the guest's `RST`, so that the guest reads what is
//! still on its way. Ways to fail: the guest breaks a rule (more bytes than credit, bytes after its `SHUTDOWN`, an operation that does not
//! fit the state) and gets `RST`. However a connection ends, bytes taken from the guest before that still go to the host.

use super::packet::{Header, Operation, Shutdown};

/// How much the device holds of what a guest has sent and the host has not taken yet, per connection. Four of the largest packets a
/// Linux guest makes, so that one can be on its way while others are written.
pub(super) const BUFFER_BYTES: u32 = 256 * 1024;
/// The same for a connection beside many others: one of the largest packets.
pub(super) const SMALL_BUFFER_BYTES: u32 = 64 * 1024;

/// A packet to be sent to the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outgoing {
    Request,
    Response,
    Reset,
    Shutdown(Shutdown),
    CreditUpdate,
    CreditRequest,
    /// At most `limit` bytes, at least one.
    Data {
        limit: u32,
    },
}

impl Outgoing {
    pub(super) fn operation(self) -> Operation {
        match self {
            Self::Request => Operation::Request,
            Self::Response => Operation::Response,
            Self::Reset => Operation::Reset,
            Self::Shutdown(_) => Operation::Shutdown,
            Self::CreditUpdate => Operation::CreditUpdate,
            Self::CreditRequest => Operation::CreditRequest,
            Self::Data { .. } => Operation::Data,
        }
    }
}

/// What a packet from the guest means for the host's stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Received {
    /// Nothing, or what [`Connection`] says when asked.
    Control,
    /// The packet's payload is to be passed on.
    Data,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Requested,
    Established,
    Ended { reset_owed: bool },
}

/// One connection.
#[derive(Debug)]
pub(super) struct Connection {
    state: State,
    /// `REQUEST` or `RESPONSE`, until it is sent.
    opening: Option<Outgoing>,
    inbound: Inbound,
    outbound: Outbound,
    /// Directions the guest has ended.
    guest: Shutdown,
    /// Directions the host has ended, and those of them the guest was told of.
    host: Shutdown,
    host_told: Shutdown,
}

/// Bytes from the guest to the host. Counters are modulo 2³².
#[derive(Debug)]
struct Inbound {
    /// How many are held at most.
    buffer: u32,
    received: u32,
    forwarded: u32,
    /// `forwarded` as the guest last heard of it.
    told: u32,
    update_requested: bool,
}

/// Bytes from the host to the guest. Counters are modulo 2³².
#[derive(Debug, Default)]
struct Outbound {
    sent: u32,
    peer_buffer: u32,
    peer_forwarded: u32,
    /// Whether the guest was asked for credit since it ran out.
    request: CreditRequest,
    /// The guest tells of credit unasked, as Linux does, so it need not be asked: it would answer with what little it has just then, and
    /// the rest of the transfer would go in such small steps.
    volunteers: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum CreditRequest {
    #[default]
    No,
    Sent,
    /// Without any; the guest will tell when it has some.
    Answered,
}

impl Connection {
    /// A connection the host asks for.
    pub(super) fn requested() -> Self {
        Self::new(State::Requested, Outgoing::Request)
    }

    /// A connection the guest asked for by `request`, and gets.
    pub(super) fn accepted(request: &Header) -> Self {
        let mut connection = Self::new(State::Established, Outgoing::Response);
        connection.outbound.learn(request);
        connection
    }

    fn new(state: State, opening: Outgoing) -> Self {
        Self {
            state,
            opening: Some(opening),
            inbound: Inbound::new(BUFFER_BYTES),
            outbound: Outbound::default(),
            guest: Shutdown::default(),
            host: Shutdown::default(),
            host_told: Shutdown::default(),
        }
    }

    /// The same, new connection, holding so many bytes of the guest's at most.
    pub(super) fn with_buffer(self, bytes: u32) -> Self {
        Self {
            inbound: Inbound::new(bytes),
            ..self
        }
    }

    /// Takes a packet of the guest's.
    pub(super) fn receive(&mut self, header: &Header) -> Received {
        let operation = header.operation();
        if operation == Some(Operation::Reset) {
            self.state = State::Ended { reset_owed: false };
            return Received::Control;
        }
        match (self.state, operation) {
            (State::Ended { .. }, _) => return Received::Control,
            (State::Requested, Some(Operation::Response)) => {
                self.state = State::Established;
                self.outbound.learn(header);
            }
            (State::Established, Some(Operation::Data)) => {
                self.outbound.learn(header);
                return self.receive_data(header.len);
            }
            (State::Established, Some(Operation::Shutdown)) => {
                self.outbound.learn(header);
                self.guest = self.guest.with(Shutdown::from_flags(header.flags));
                if self.guest == Shutdown::BOTH {
                    self.reset();
                }
            }
            (State::Established, Some(Operation::CreditUpdate)) => {
                self.outbound.learn_update(header);
            }
            (State::Established, Some(Operation::CreditRequest)) => {
                self.outbound.learn(header);
                self.inbound.update_requested = true;
            }
            _ => self.reset(),
        }
        Received::Control
    }

    fn receive_data(&mut self, len: u32) -> Received {
        if self.guest.contains(Shutdown::SEND) || !self.inbound.take(len) {
            self.reset();
            return Received::Control;
        }
        if self.host.contains(Shutdown::RECEIVE) {
            // On its way when the guest had not heard yet; there is nobody to give it to.
            self.forwarded(len);
            return Received::Control;
        }
        Received::Data
    }

    /// `count` bytes were passed on to the host.
    pub(super) fn forwarded(&mut self, count: u32) {
        self.inbound.forwarded = self.inbound.forwarded.wrapping_add(count);
    }

    /// The host sends no more; everything it sent was sent to the guest.
    pub(super) fn host_ends_sending(&mut self) {
        self.host = self.host.with(Shutdown::SEND);
    }

    /// The host takes no more.
    pub(super) fn host_ends_receiving(&mut self) {
        self.host = self.host.with(Shutdown::RECEIVE);
    }

    /// Ends the connection by a reset.
    pub(super) fn reset(&mut self) {
        if !self.is_ended() {
            self.state = State::Ended { reset_owed: true };
        }
    }

    /// The next packet for the guest. `readable`: the host's stream may have bytes.
    pub(super) fn next(&self, readable: bool) -> Option<Outgoing> {
        if let State::Ended { reset_owed } = self.state {
            return reset_owed.then_some(Outgoing::Reset);
        }
        if self.opening.is_some() {
            return self.opening;
        }
        if self.state == State::Requested {
            return None;
        }
        if self.host != self.host_told {
            return Some(Outgoing::Shutdown(self.host));
        }
        if readable && self.wants_data() {
            match self.outbound.credit() {
                0 if self.outbound.must_ask() => return Some(Outgoing::CreditRequest),
                0 => {}
                limit => return Some(Outgoing::Data { limit }),
            }
        }
        self.owes_update().then_some(Outgoing::CreditUpdate)
    }

    /// Whether bytes of the host may go to the guest at all, credit aside.
    pub(super) fn wants_data(&self) -> bool {
        self.state == State::Established
            && !self.guest.contains(Shutdown::RECEIVE)
            && !self.host.contains(Shutdown::SEND)
    }

    fn owes_update(&self) -> bool {
        !self.guest.contains(Shutdown::SEND)
            && (self.inbound.update_requested
                || self.inbound.untold() >= self.inbound.update_bytes())
    }

    /// Notes that `outgoing` is sent, with `len` bytes of payload, and puts credit into its header.
    pub(super) fn sent(&mut self, outgoing: Outgoing, len: u32, header: &mut Header) {
        header.op = outgoing.operation() as u16;
        header.len = len;
        match outgoing {
            Outgoing::Reset => {
                self.state = State::Ended { reset_owed: false };
                return;
            }
            Outgoing::Request | Outgoing::Response => self.opening = None,
            Outgoing::Shutdown(directions) => {
                self.host_told = directions;
                header.flags = directions.flags();
            }
            Outgoing::Data { .. } => self.outbound.sent = self.outbound.sent.wrapping_add(len),
            Outgoing::CreditRequest => self.outbound.request = CreditRequest::Sent,
            Outgoing::CreditUpdate => {}
        }
        header.buf_alloc = self.inbound.buffer;
        header.fwd_cnt = self.inbound.tell();
    }

    /// The guest sends no more: once all is passed on, the host is to see the end.
    pub(super) fn guest_ended_sending(&self) -> bool {
        self.is_ended() || self.guest.contains(Shutdown::SEND)
    }

    /// The guest takes no more.
    pub(super) fn guest_ended_receiving(&self) -> bool {
        self.is_ended() || self.guest.contains(Shutdown::RECEIVE)
    }

    /// The host neither sends nor takes any more.
    pub(super) fn host_is_gone(&self) -> bool {
        self.host == Shutdown::BOTH
    }

    /// Nothing will come from the guest any more, except perhaps the last of its packets.
    pub(super) fn is_ended(&self) -> bool {
        matches!(self.state, State::Ended { .. })
    }

    /// Ended, and the guest knows: to the guest the connection is no more.
    pub(super) fn is_forgotten(&self) -> bool {
        self.state == State::Ended { reset_owed: false }
    }
}

impl Inbound {
    fn new(buffer: u32) -> Self {
        Self {
            buffer,
            received: 0,
            forwarded: 0,
            told: 0,
            update_requested: false,
        }
    }

    /// The guest learns of passed-on bytes at the latest when they are this many. Half the buffer:
    /// the guest never runs dry, and pays for one packet per that many bytes.
    fn update_bytes(&self) -> u32 {
        self.buffer / 2
    }

    /// Counts `len` bytes; false if they are more than the guest was told it may send.
    fn take(&mut self, len: u32) -> bool {
        let in_flight = self.received.wrapping_sub(self.told);
        let allowed = len <= self.buffer.saturating_sub(in_flight);
        if allowed {
            self.received = self.received.wrapping_add(len);
        }
        allowed
    }

    fn untold(&self) -> u32 {
        self.forwarded.wrapping_sub(self.told)
    }

    fn tell(&mut self) -> u32 {
        self.told = self.forwarded;
        self.update_requested = false;
        self.told
    }
}

impl Outbound {
    /// Notes the credit every packet of the guest's carries.
    fn learn(&mut self, header: &Header) {
        self.peer_buffer = header.buf_alloc;
        self.peer_forwarded = header.fwd_cnt;
        if self.credit() > 0 {
            self.request = CreditRequest::No;
        }
    }

    /// Notes the credit of a packet that is there for nothing else.
    fn learn_update(&mut self, header: &Header) {
        if self.request == CreditRequest::Sent {
            self.request = CreditRequest::Answered;
        } else {
            self.volunteers = true;
        }
        self.learn(header);
    }

    fn must_ask(&self) -> bool {
        self.request == CreditRequest::No && !self.volunteers
    }

    /// A guest that claims to have passed on more than it was sent gets nothing.
    fn credit(&self) -> u32 {
        let in_flight = self.sent.wrapping_sub(self.peer_forwarded);
        self.peer_buffer.saturating_sub(in_flight)
    }
}

#[cfg(test)]
mod tests;
