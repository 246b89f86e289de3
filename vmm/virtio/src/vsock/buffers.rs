//! Pieces of guest memory in order, as system calls want them: bytes go between a stream and the guest without a copy in between.
//!
//! A packet's header and payload may lie in any number of pieces, cut anywhere (virtio 1.2, section 2.7.4.1).

use std::collections::VecDeque;
use std::io;
use std::os::fd::BorrowedFd;

use vm_memory::{ReadVolatile, VolatileMemoryError, VolatileSlice, WriteVolatile};

use crate::{Chain, QueueError};

/// Guest memory, from the first byte not yet used.
#[derive(Debug, Default)]
pub(super) struct Buffers<'m> {
    pub(super) pieces: VecDeque<VolatileSlice<'m>>,
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
    pub(super) fn write_to(&mut self, mut stream: BorrowedFd<'_>) -> io::Result<usize> {
        let mut total = 0;
        while let Some(piece) = self.pieces.pop_front() {
            let count = match retry(|| stream.write_volatile(&piece)) {
                Ok(count) => count,
                Err(error) => {
                    self.pieces.push_front(piece);
                    return if total > 0 { Ok(total) } else { Err(error) };
                }
            };
            total += count;
            if count < piece.len() {
                if let Ok(rest) = piece.offset(count) {
                    self.pieces.push_front(rest);
                }
                break;
            }
        }
        Ok(total)
    }

    /// Reads from a non-blocking stream what there is, at most `limit` bytes. 0 is the stream's end: neither `limit` nor the room is 0. The room
    /// stays as it was.
    pub(super) fn read_from(&self, mut stream: BorrowedFd<'_>, limit: usize) -> io::Result<usize> {
        let mut total = 0;
        for piece in &self.pieces {
            let count = piece.len().min(limit - total);
            if count == 0 {
                continue;
            }
            let mut room = piece
                .subslice(0, count)
                .map_err(|error| io::Error::other(error.to_string()))?;
            match retry(|| stream.read_volatile(&mut room)) {
                Ok(read) => {
                    total += read;
                    if read < count {
                        break;
                    }
                }
                Err(_) if total > 0 => break,
                Err(error) => return Err(error),
            }
        }
        Ok(total)
    }
}

fn retry(mut call: impl FnMut() -> Result<usize, VolatileMemoryError>) -> Result<usize, io::Error> {
    loop {
        match call() {
            Ok(count) => return Ok(count),
            Err(VolatileMemoryError::IOError(error))
                if error.kind() == io::ErrorKind::Interrupted => {}
            Err(VolatileMemoryError::IOError(error)) => return Err(error),
            Err(error) => return Err(io::Error::other(error.to_string())),
        }
    }
}
