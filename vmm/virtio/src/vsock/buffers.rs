//! Pieces of guest memory in order, as system calls want them: bytes go between a stream and the guest without a copy in between.
//!
//! A packet's header and payload may lie in any number of pieces, cut anywhere (virtio 1.2, section 2.7.4.1).

use std::collections::VecDeque;
use std::io;
use std::os::fd::BorrowedFd;

use vm_memory::VolatileSlice;

use super::packet::{HEADER_BYTES, Header};
use super::vectored;
use crate::{Chain, QueueError};

/// Guest memory, from the first byte not yet used.
#[derive(Debug, Default)]
pub(super) struct Buffers<'m> {
    pieces: VecDeque<VolatileSlice<'m>>,
}

impl<'m> Buffers<'m> {
    /// What the guest sent.
    pub(super) fn readable(chain: &Chain<'m>) -> Result<Self, QueueError> {
        Ok(Self {
            pieces: chain.readable().collect::<Result<_, _>>()?,
        })
    }

    /// The room the guest offers.
    pub(super) fn writable(chain: &Chain<'m>) -> Result<Self, QueueError> {
        Ok(Self {
            pieces: chain.writable().collect::<Result<_, _>>()?,
        })
    }

    /// Memory without a ring.
    #[cfg(fuzzing)]
    pub(super) fn of_pieces(pieces: Vec<&'m mut [u8]>) -> Self {
        Self {
            pieces: pieces.into_iter().map(VolatileSlice::from).collect(),
        }
    }

    /// How much is left.
    pub(super) fn len(&self) -> usize {
        self.pieces.iter().map(VolatileSlice::len).sum()
    }

    /// Cuts off the first `count` bytes; None, and nothing cut, if there are fewer.
    pub(super) fn split_front(&mut self, count: usize) -> Option<Self> {
        if self.len() < count {
            return None;
        }
        let mut front = VecDeque::new();
        let mut missing = count;
        while missing > 0 {
            let piece = self.pieces.pop_front()?;
            let here = missing.min(piece.len());
            let (used, rest) = piece.split_at(here).ok()?;
            front.push_back(used);
            if !rest.is_empty() {
                self.pieces.push_front(rest);
            }
            missing -= here;
        }
        Some(Self { pieces: front })
    }

    /// Copies from the start of the guest's memory; returns how many bytes there were.
    pub(super) fn copy_to(&self, mut bytes: &mut [u8]) -> usize {
        let wanted = bytes.len();
        for piece in &self.pieces {
            let count = piece.copy_to(bytes);
            bytes = &mut bytes[count..];
        }
        wanted - bytes.len()
    }

    /// Copies to the start of the guest's memory what fits.
    pub(super) fn copy_from(&self, mut bytes: &[u8]) {
        for piece in &self.pieces {
            let count = piece.len().min(bytes.len());
            piece.copy_from(&bytes[..count]);
            bytes = &bytes[count..];
        }
    }

    /// Writes to a non-blocking stream as much as it takes and drops that from the front. An error after the first byte comes with the next call.
    pub(super) fn write_to(&mut self, stream: BorrowedFd<'_>) -> io::Result<usize> {
        let mut total = 0;
        while !self.pieces.is_empty() {
            let offered = length_of(self.pieces.iter().take(vectored::PIECES_MAX));
            let count = match vectored::write(stream, self.pieces.iter().copied()) {
                Ok(count) => count,
                Err(_) if total > 0 => break,
                Err(error) => return Err(error),
            };
            self.drop_front(count);
            total += count;
            if count < offered {
                break;
            }
        }
        Ok(total)
    }

    /// Reads from a non-blocking stream what there is, at most `limit` bytes. 0 is the stream's end: neither `limit` nor the room is 0. The room
    /// stays as it was.
    pub(super) fn read_from(&self, stream: BorrowedFd<'_>, limit: usize) -> io::Result<usize> {
        let mut room = self.first(limit);
        let mut total = 0;
        while !room.pieces.is_empty() {
            let offered = length_of(room.pieces.iter().take(vectored::PIECES_MAX));
            let count = match vectored::read(stream, room.pieces.iter().copied()) {
                Ok(count) => count,
                Err(_) if total > 0 => break,
                Err(error) => return Err(error),
            };
            room.drop_front(count);
            total += count;
            if count < offered {
                break;
            }
        }
        Ok(total)
    }

    /// The first `limit` bytes, or all there are.
    fn first(&self, limit: usize) -> Self {
        let mut missing = limit;
        let mut pieces = VecDeque::new();
        for piece in &self.pieces {
            let Ok(part) = piece.subslice(0, piece.len().min(missing)) else {
                break;
            };
            missing -= part.len();
            if !part.is_empty() {
                pieces.push_back(part);
            }
            if missing == 0 {
                break;
            }
        }
        Self { pieces }
    }

    /// Drops the first `count` bytes, and pieces without any before the next one.
    fn drop_front(&mut self, count: usize) {
        let mut rest = count;
        while let Some(piece) = self.pieces.front_mut() {
            match piece.offset(rest) {
                Ok(left) if !left.is_empty() => {
                    *piece = left;
                    return;
                }
                _ => {
                    rest -= rest.min(piece.len());
                    self.pieces.pop_front();
                }
            }
        }
    }
}

fn length_of<'a, 'm: 'a>(pieces: impl Iterator<Item = &'a VolatileSlice<'m>>) -> usize {
    pieces.map(VolatileSlice::len).sum()
}

/// Room in the guest for one packet.
#[derive(Debug)]
pub(super) struct Permit<'m> {
    header: Buffers<'m>,
    payload: Buffers<'m>,
}

impl<'m> Permit<'m> {
    /// The room of `chain`: a header's and at least one byte more.
    pub(super) fn new(chain: &Chain<'m>) -> Result<Self, QueueError> {
        let too_small = QueueError::BadChain { head: chain.head() };
        Self::from_room(Buffers::writable(chain)?).ok_or(too_small)
    }

    pub(super) fn from_room(mut payload: Buffers<'m>) -> Option<Self> {
        let header = payload.split_front(HEADER_BYTES)?;
        (payload.len() > 0).then_some(Self { header, payload })
    }

    /// The room for the payload.
    pub(super) fn payload(&self) -> &Buffers<'m> {
        &self.payload
    }

    /// Writes the header of a packet whose payload is in place; returns the bytes of both.
    pub(super) fn fill(&self, header: Header) -> u32 {
        self.header.copy_from(&header.to_bytes());
        header.packet_len()
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    use super::*;

    /// One piece, without a ring.
    impl<'m> From<&'m mut [u8]> for Buffers<'m> {
        fn from(memory: &'m mut [u8]) -> Self {
            Self {
                pieces: VecDeque::from([VolatileSlice::from(memory)]),
            }
        }
    }

    impl<'m> Permit<'m> {
        /// Room without a ring.
        pub(in super::super) fn of(memory: &'m mut [u8]) -> Self {
            Self::from_room(Buffers::from(memory)).unwrap()
        }
    }

    #[test]
    fn pieces_are_one_row_of_bytes_wherever_they_are_cut() {
        let (mut first, mut second, mut third) = ([1, 2], [], [3, 4, 5]);
        let mut buffers = Buffers {
            pieces: [&mut first[..], &mut second[..], &mut third[..]]
                .map(VolatileSlice::from)
                .into(),
        };
        assert!(buffers.split_front(6).is_none());
        assert_eq!(buffers.len(), 5);
        let front = buffers.split_front(3).unwrap();
        let mut bytes = [0; 4];
        assert_eq!(front.copy_to(&mut bytes), 3);
        assert_eq!(bytes, [1, 2, 3, 0]);
        buffers.copy_from(&[9]);
        assert_eq!(buffers.copy_to(&mut bytes), 2);
        assert_eq!(bytes[..2], [9, 5]);
    }

    #[test]
    fn bytes_cross_the_cuts_between_pieces_on_their_way_to_and_from_a_stream() {
        let (ours, mut peer) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let (mut first, mut second) = ([1, 2, 3], [4, 5]);
        let mut buffers = Buffers::from(&mut first[..]);
        buffers
            .pieces
            .push_back(VolatileSlice::from(&mut second[..]));
        let again = buffers.read_from(ours.as_fd(), 5).unwrap_err();
        assert_eq!(again.kind(), io::ErrorKind::WouldBlock);
        assert_eq!(buffers.write_to(ours.as_fd()).unwrap(), 5);
        assert_eq!(buffers.len(), 0);
        let mut bytes = [0; 5];
        peer.read_exact(&mut bytes).unwrap();
        assert_eq!(bytes, [1, 2, 3, 4, 5]);

        let mut buffers = Buffers::from(&mut first[..]);
        buffers
            .pieces
            .push_back(VolatileSlice::from(&mut second[..]));
        peer.write_all(&[6, 7, 8, 9, 10]).unwrap();
        assert_eq!(buffers.read_from(ours.as_fd(), 4).unwrap(), 4);
        drop(peer);
        let mut rest = [0; 8];
        let rest = Buffers::from(&mut rest[..]);
        assert_eq!(rest.read_from(ours.as_fd(), 8).unwrap(), 1);
        assert_eq!(rest.read_from(ours.as_fd(), 8).unwrap(), 0);
        buffers.copy_to(&mut bytes);
        assert_eq!(bytes, [6, 7, 8, 9, 5]);
    }

    #[test]
    fn packet_in_more_pieces_than_a_call_takes_is_written_and_read_whole() {
        let (ours, mut peer) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let count = 2 * vectored::PIECES_MAX + 7;
        let sent: Vec<u8> = (0..count)
            .map(|at| u8::try_from(at % 251).unwrap())
            .collect();
        let mut memory = sent.clone();
        fn pieces(memory: &mut [u8]) -> Buffers<'_> {
            let pieces = memory.chunks_mut(1).map(VolatileSlice::from).collect();
            Buffers { pieces }
        }
        let mut buffers = pieces(&mut memory);
        assert_eq!(buffers.write_to(ours.as_fd()).unwrap(), count);
        assert_eq!(buffers.len(), 0);
        let mut received = vec![0; count];
        peer.read_exact(&mut received).unwrap();
        assert_eq!(received, sent);
        peer.write_all(&sent).unwrap();
        let mut memory = vec![0; count];
        let buffers = pieces(&mut memory);
        assert_eq!(
            buffers.read_from(ours.as_fd(), count - 1).unwrap(),
            count - 1
        );
        assert_eq!(memory[..count - 1], sent[..count - 1]);
        assert_eq!(memory[count - 1], 0);
    }
}
