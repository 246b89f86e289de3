//! Requests and responses as bytes (pure; virtio 1.2, section 5.15.6).
//!
//! A request is a type (2 bytes) and padding (6), then, for all but UNPLUG_ALL, the address of the first block (8), the number of blocks (2) and padding
//! (6). A response is a type (2) and padding (6), then for STATE the state (2).

use std::ops::Range;

use super::BLOCK_BYTES;
use super::blocks::BlocksState;

pub(super) const REQUEST_BYTES: usize = 24;
const RESPONSE_BYTES: usize = 10;

/// What the driver asks for. Ranges are of blocks; nobody has looked yet whether there are such blocks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Request {
    Plug(Range<u64>),
    Unplug(Range<u64>),
    UnplugAll,
    State(Range<u64>),
}

/// The device's answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Response {
    Ack,
    Nack,
    Busy,
    Error,
    /// ACK to a STATE request.
    State(BlocksState),
}

impl Request {
    /// None for a type that nobody knows, and for what is no range of blocks of a region that begins at `start`.
    pub(super) fn parse(bytes: &[u8; REQUEST_BYTES], start: u64) -> Option<Self> {
        let [low, high, ..] = *bytes;
        let kind = u16::from_le_bytes([low, high]);
        if kind == 2 {
            return Some(Self::UnplugAll);
        }
        let offset = u64::from_le_bytes(*bytes.get(8..)?.first_chunk()?).checked_sub(start)?;
        let count = u64::from(u16::from_le_bytes(*bytes.get(16..)?.first_chunk()?));
        if count == 0 || !offset.is_multiple_of(BLOCK_BYTES) {
            return None;
        }
        let first = offset / BLOCK_BYTES;
        let range = first..first + count;
        match kind {
            0 => Some(Self::Plug(range)),
            1 => Some(Self::Unplug(range)),
            3 => Some(Self::State(range)),
            _ => None,
        }
    }
}

impl Response {
    pub(super) fn bytes(self) -> [u8; RESPONSE_BYTES] {
        let (kind, state) = match self {
            Self::Ack => (0, 0),
            Self::Nack => (1, 0),
            Self::Busy => (2, 0),
            Self::Error => (3, 0),
            Self::State(BlocksState::Plugged) => (0, 0),
            Self::State(BlocksState::Unplugged) => (0, 1),
            Self::State(BlocksState::Mixed) => (0, 2),
        };
        let mut bytes = [0; RESPONSE_BYTES];
        bytes[0] = kind;
        bytes[8] = state;
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: u64 = 1 << 32;

    fn request(kind: u16, address: u64, count: u16) -> [u8; REQUEST_BYTES] {
        let mut bytes = [0; REQUEST_BYTES];
        bytes[..2].copy_from_slice(&kind.to_le_bytes());
        bytes[8..16].copy_from_slice(&address.to_le_bytes());
        bytes[16..18].copy_from_slice(&count.to_le_bytes());
        bytes
    }

    fn parse(kind: u16, address: u64, count: u16) -> Option<Request> {
        Request::parse(&request(kind, address, count), START)
    }

    #[test]
    fn requests_name_blocks() {
        let second = START + BLOCK_BYTES;
        assert_eq!(parse(0, second, 3), Some(Request::Plug(1..4)));
        assert_eq!(parse(1, START, 1), Some(Request::Unplug(0..1)));
        assert_eq!(parse(2, 7, 0), Some(Request::UnplugAll));
        assert_eq!(parse(3, second, u16::MAX), Some(Request::State(1..65536)));
    }

    #[test]
    fn what_is_no_range_of_blocks_is_no_request() {
        assert_eq!(parse(0, START - BLOCK_BYTES, 1), None);
        assert_eq!(parse(0, START + 4096, 1), None);
        assert_eq!(parse(0, START, 0), None);
        assert_eq!(parse(4, START, 1), None);
        assert!(parse(1, u64::MAX - BLOCK_BYTES + 1, u16::MAX).is_some());
    }
}
