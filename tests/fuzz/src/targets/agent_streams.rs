//! The streams that the host opens to the agent: connections say an id, processes claim one.
//!
//! Promised: an id is the first eight bytes of a connection, in whatever pieces they come, and no byte
//! behind them is taken; a connection is handed to the one who claims its id and to nobody else, once;
//! as many wait unclaimed as is said, and no more.

use std::collections::HashMap;

use agent_api::StreamId;
use tokio::sync::oneshot::Receiver;
use tokio::sync::oneshot::error::TryRecvError;

use crate::input::Input;
use table::{Greeting, Table, UNCLAIMED_MAX};

// The agent is a program and no library; this module of it needs no other.
#[path = "../../../../agent/src/streams/table.rs"]
mod table;

/// A connection by its number, in the order of their coming.
type Connection = u32;

/// What the table should hold.
#[derive(Debug)]
enum Slot {
    Arrived(Connection),
    /// The claim that waits, by its number; None once nobody waits any more.
    Wanted(Option<usize>),
}

/// The code under test, and what should come of it.
struct World {
    table: Table<Connection>,
    slots: HashMap<u64, Slot>,
    claims: Vec<Option<Receiver<Connection>>>,
    connections: Connection,
}

pub(crate) fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let mut world = World {
        table: Table::new(),
        slots: HashMap::new(),
        claims: Vec::new(),
        connections: 0,
    };
    while !input.is_empty() {
        match input.u8() % 8 {
            0..3 => world.connect(&mut input),
            3 | 4 => world.claim(&mut input),
            5 => world.expire(&mut input),
            6 => world.leave(&mut input),
            _ => world.crowd(&mut input),
        }
    }
}

/// Few ids, so that they meet.
fn id(input: &mut Input<'_>) -> u64 {
    u64::from(input.u8() % 8) << (8 * (input.u8() % 8))
}

impl World {
    /// A connection says its id in pieces, and more behind it; or ends before.
    fn connect(&mut self, input: &mut Input<'_>) {
        let said = id(input);
        let mut stream = said.to_le_bytes().to_vec();
        stream.extend([0xa5; 8]);
        let mut rest = &stream[..];
        let mut greeting = Greeting::default();
        let told = loop {
            if let Some(told) = greeting.said() {
                break told;
            }
            let piece = usize::from(input.u8() % 10);
            if piece == 0 {
                // It has ended.
                return;
            }
            let room = greeting.room();
            let count = piece.min(room.len());
            room[..count].copy_from_slice(&rest[..count]);
            rest = &rest[count..];
            greeting.came(count);
        };
        assert_eq!(rest, [0xa5; 8], "bytes of the stream were taken");
        assert_eq!(told.map_or(0, StreamId::get), said);
        if let Some(told) = told {
            self.arrive(told);
        }
    }

    fn arrive(&mut self, id: StreamId) {
        let connection = self.connections;
        self.connections += 1;
        let taken = self.table.arrive(id, connection).is_ok();
        let waiting = self
            .slots
            .values()
            .filter(|slot| matches!(slot, Slot::Arrived(_)));
        let is_full = waiting.count() >= UNCLAIMED_MAX;
        match self.slots.remove(&id.get()) {
            Some(Slot::Wanted(Some(claim))) => {
                assert!(taken);
                self.assert_handed(claim, connection);
            }
            Some(Slot::Wanted(None)) => assert!(!taken, "handed to nobody"),
            Some(slot @ Slot::Arrived(_)) => {
                assert!(!taken, "an id was taken twice");
                self.slots.insert(id.get(), slot);
            }
            None => {
                assert_eq!(taken, !is_full);
                if taken {
                    self.slots.insert(id.get(), Slot::Arrived(connection));
                }
            }
        }
    }

    fn assert_handed(&mut self, claim: usize, connection: Connection) {
        let received = self.claims[claim].take().map(|mut claim| claim.try_recv());
        assert_eq!(received, Some(Ok(connection)));
    }

    fn claim(&mut self, input: &mut Input<'_>) {
        let Some(id) = StreamId::new(id(input)) else {
            return;
        };
        let number = self.claims.len();
        self.claims.push(Some(self.table.claim(id)));
        match self.slots.remove(&id.get()) {
            Some(Slot::Arrived(connection)) => return self.assert_handed(number, connection),
            Some(Slot::Wanted(Some(earlier))) => self.assert_ended(earlier),
            Some(Slot::Wanted(None)) | None => {}
        }
        let waits = self.claims[number].as_mut().map(Receiver::try_recv);
        assert_eq!(waits, Some(Err(TryRecvError::Empty)));
        self.slots.insert(id.get(), Slot::Wanted(Some(number)));
    }

    fn assert_ended(&mut self, claim: usize) {
        let received = self.claims[claim].take().map(|mut claim| claim.try_recv());
        assert_eq!(received, Some(Err(TryRecvError::Closed)));
    }

    fn expire(&mut self, input: &mut Input<'_>) {
        let Some(id) = StreamId::new(id(input)) else {
            return;
        };
        self.table.expire(id);
        if let Some(Slot::Wanted(Some(claim))) = self.slots.remove(&id.get()) {
            self.assert_ended(claim);
        }
    }

    /// A process that waits for its stream has ended.
    fn leave(&mut self, input: &mut Input<'_>) {
        if let Some(Slot::Wanted(claim)) = self.slots.get_mut(&id(input))
            && let Some(claim) = claim.take()
        {
            self.claims[claim] = None;
        }
    }

    /// Many connections at once.
    fn crowd(&mut self, input: &mut Input<'_>) {
        let first = 1000 + u64::from(input.u8());
        for number in 0..64 {
            if let Some(id) = StreamId::new(first + number) {
                self.arrive(id);
            }
        }
    }
}
