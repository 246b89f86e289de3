//! One descriptor chain, checked, as two byte streams.
//!
//! A chain is what the guest says lies where: a list of (address, length) that the device may read, then a list that it may write (virtio 1.2,
//! section 2.7.4). A [`Chain`] exists only once every one of them lies in guest memory, so devices read and write without looking at
//! addresses. The walk is bounded by the queue's size and by 4 GiB of buffers, as virtio-queue enforces.

use std::io::{Read, Write};

use virtio_queue::desc::split::Descriptor;
use virtio_queue::{DescriptorChain, Reader, Writer};
use vm_memory::{GuestMemory as _, VolatileSlice};

use crate::{GuestMemory, QueueError};

/// Buffers taken from a queue, to be given back with [`crate::Queue::complete`].
#[derive(Debug)]
pub struct Chain<'m> {
    head: u16,
    memory: &'m GuestMemory,
    descriptors: DescriptorChain<&'m GuestMemory>,
}

impl<'m> Chain<'m> {
    pub(crate) fn new(
        descriptors: DescriptorChain<&'m GuestMemory>,
        memory: &'m GuestMemory,
    ) -> Self {
        Self {
            head: descriptors.head_index(),
            memory,
            descriptors,
        }
    }

    /// Names the chain when it is completed.
    #[must_use]
    pub fn head(&self) -> u16 {
        self.head
    }

    /// The bytes the guest sent.
    pub fn reader(&self) -> Result<Reader<'m>, QueueError> {
        self.descriptors
            .clone()
            .reader(self.memory)
            .map_err(|_| QueueError::BadChain { head: self.head })
    }

    /// The room the guest offers.
    pub fn writer(&self) -> Result<Writer<'m>, QueueError> {
        self.descriptors
            .clone()
            .writer(self.memory)
            .map_err(|_| QueueError::BadChain { head: self.head })
    }

    /// What the guest sent as the pieces of memory it lies in, for system calls that read it there.
    pub fn readable(&self) -> impl Iterator<Item = Result<VolatileSlice<'m>, QueueError>> {
        self.descriptors.clone().readable().map(self.piece())
    }

    /// The room the guest offers as the pieces of memory it lies in, for system calls that write it there.
    pub fn writable(&self) -> impl Iterator<Item = Result<VolatileSlice<'m>, QueueError>> {
        self.descriptors.clone().writable().map(self.piece())
    }

    /// The descriptors themselves, for a library that brings its own streams.
    #[must_use]
    pub fn descriptors(&self) -> DescriptorChain<&'m GuestMemory> {
        self.descriptors.clone()
    }

    /// Fills `buffer` from the start of what the guest sent; returns how many bytes there were.
    pub fn read_into(&self, buffer: &mut [u8]) -> Result<usize, QueueError> {
        let mut reader = self.reader()?;
        let mut filled = 0;
        while filled < buffer.len() {
            match reader.read(&mut buffer[filled..]) {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(_) => return Err(QueueError::BadChain { head: self.head }),
            }
        }
        Ok(filled)
    }

    /// Writes `bytes` at the start of the room the guest offers; an error when they do not fit.
    pub fn write_from(&self, bytes: &[u8]) -> Result<u32, QueueError> {
        let bad = QueueError::BadChain { head: self.head };
        self.writer()?
            .write_all(bytes)
            .map_err(|_| QueueError::BadChain { head: self.head })?;
        u32::try_from(bytes.len()).map_err(|_| bad)
    }

    fn piece(&self) -> impl Fn(Descriptor) -> Result<VolatileSlice<'m>, QueueError> + use<'m> {
        let (memory, head) = (self.memory, self.head);
        move |descriptor| {
            usize::try_from(descriptor.len())
                .ok()
                .and_then(|len| memory.get_slice(descriptor.addr(), len).ok())
                .ok_or(QueueError::BadChain { head })
        }
    }
}
