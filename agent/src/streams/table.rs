//! Which connection waits for which process, and how a connection says whose it is (pure).

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use agent_api::StreamId;
use tokio::sync::oneshot;

/// Connections that nobody has claimed. The host opens four per process at most, and processes are
/// claimed within a deadline.
pub(crate) const UNCLAIMED_MAX: usize = 256;

/// The first bytes of a connection, which come in any pieces. What is behind them is the stream's.
#[derive(Debug, Default)]
pub(crate) struct Greeting {
    bytes: [u8; 8],
    have: usize,
}

impl Greeting {
    /// Where the next bytes go; nowhere once all have come.
    pub(crate) fn room(&mut self) -> &mut [u8] {
        &mut self.bytes[self.have..]
    }

    /// So many bytes are in the room, which has as many.
    pub(crate) fn came(&mut self, count: usize) {
        self.have += count;
    }

    /// The id once all of it has come, which is none where it is 0.
    pub(crate) fn said(&self) -> Option<Option<StreamId>> {
        let complete = self.have == self.bytes.len();
        complete.then(|| StreamId::new(u64::from_le_bytes(self.bytes)))
    }
}

/// Who waits for whom.
#[derive(Debug)]
pub(crate) struct Table<S> {
    slots: HashMap<StreamId, Slot<S>>,
}

#[derive(Debug)]
enum Slot<S> {
    Arrived(S),
    Wanted(oneshot::Sender<S>),
}

impl<S> Table<S> {
    pub(crate) fn new() -> Self {
        Self {
            slots: HashMap::new(),
        }
    }

    /// A connection has said its id. It is given back where it cannot be taken: the id is taken, or too many wait.
    pub(crate) fn arrive(&mut self, id: StreamId, socket: S) -> Result<(), S> {
        let arrived = self
            .slots
            .values()
            .filter(|slot| matches!(slot, Slot::Arrived(_)))
            .count();
        match self.slots.entry(id) {
            Entry::Occupied(slot) if matches!(slot.get(), Slot::Arrived(_)) => Err(socket),
            Entry::Occupied(slot) => match slot.remove() {
                Slot::Wanted(claim) => claim.send(socket),
                Slot::Arrived(socket) => Err(socket),
            },
            Entry::Vacant(_) if arrived >= UNCLAIMED_MAX => Err(socket),
            Entry::Vacant(slot) => {
                slot.insert(Slot::Arrived(socket));
                Ok(())
            }
        }
    }

    /// A process wants the stream. A second claim takes the place of the first.
    pub(crate) fn claim(&mut self, id: StreamId) -> oneshot::Receiver<S> {
        let (sender, receiver) = oneshot::channel();
        match self.slots.remove(&id) {
            // The receiver is there, so that nothing is lost.
            Some(Slot::Arrived(socket)) => drop(sender.send(socket)),
            Some(Slot::Wanted(_)) | None => drop(self.slots.insert(id, Slot::Wanted(sender))),
        }
        receiver
    }

    /// Nobody came in time.
    pub(crate) fn expire(&mut self, id: StreamId) {
        self.slots.remove(&id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(number: u64) -> StreamId {
        StreamId::new(number).unwrap()
    }

    #[test]
    fn a_claim_meets_an_earlier_connection() {
        let mut table = Table::new();
        table.arrive(id(1), "socket").unwrap();
        assert_eq!(table.claim(id(1)).try_recv(), Ok("socket"));
    }

    #[test]
    fn a_connection_meets_an_earlier_claim() {
        let mut table = Table::new();
        let mut claim = table.claim(id(1));
        assert!(claim.try_recv().is_err());
        table.arrive(id(1), "socket").unwrap();
        assert_eq!(claim.try_recv(), Ok("socket"));
    }

    #[test]
    fn an_id_is_taken_once() {
        let mut table = Table::new();
        table.arrive(id(1), "first").unwrap();
        assert_eq!(table.arrive(id(1), "second"), Err("second"));
        assert_eq!(table.claim(id(1)).try_recv(), Ok("first"));
    }

    #[test]
    fn unclaimed_connections_are_bounded() {
        let mut table = Table::new();
        for number in 1..=UNCLAIMED_MAX as u64 {
            table.arrive(id(number), ()).unwrap();
        }
        assert_eq!(table.arrive(id(1 + UNCLAIMED_MAX as u64), ()), Err(()));
        let wanted = table.claim(id(1));
        drop(wanted);
        assert_eq!(table.arrive(id(1 + UNCLAIMED_MAX as u64), ()), Ok(()));
    }

    #[test]
    fn an_expired_claim_ends() {
        let mut table: Table<()> = Table::new();
        let mut claim = table.claim(id(1));
        table.expire(id(1));
        assert_eq!(claim.try_recv(), Err(oneshot::error::TryRecvError::Closed));
    }

    #[test]
    fn an_id_may_come_in_pieces() {
        let bytes = 0x0102_0304_0506_0708_u64.to_le_bytes();
        for first in 0..bytes.len() {
            let mut greeting = Greeting::default();
            for piece in [&bytes[..first], &bytes[first..]] {
                assert_eq!(greeting.said(), None);
                greeting.room()[..piece.len()].copy_from_slice(piece);
                greeting.came(piece.len());
            }
            assert!(greeting.room().is_empty());
            assert_eq!(greeting.said(), Some(Some(id(0x0102_0304_0506_0708))));
        }
    }

    #[test]
    fn no_stream_is_no_id() {
        let mut greeting = Greeting::default();
        greeting.came(8);
        assert_eq!(greeting.said(), Some(None));
    }
}
