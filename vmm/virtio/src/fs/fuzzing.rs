//! A file server of its own without its queues, for fuzzing: FUSE messages in and out as bytes.

use std::fs::File;
use std::io;
use std::sync::Arc;

use rustix::fs::{Mode, OFlags};
use vm_memory::{Bytes, GuestAddress};

use super::server::Server;
use super::share::{Limits, Share};
use super::thread;
use super::view::View;
use crate::{Event, GuestMemory, Irq, Queue, QueueState};

const MEMORY_BYTES: usize = 1 << 20;
/// Where the ring, a request and its answer lie.
const STATE: QueueState = QueueState {
    size: 4,
    descriptors: 0x1000,
    available: 0x2000,
    used: 0x3000,
    next_available: 0,
    next_used: 0,
    event_index: false,
};
const REQUEST: u64 = 0x1_0000;
const ANSWER: u64 = 0x8_0000;
/// Bytes there are for a request, and for its answer.
pub const PART_BYTES: usize = 0x4_0000;

/// A server and guest memory for one message at a time.
#[derive(Debug)]
pub struct FileServer {
    memory: Arc<GuestMemory>,
    view: View,
    server: Server,
}

impl FileServer {
    /// Serves `root` to a guest that may hold so many descriptors.
    pub fn new(root: &str, descriptors: u64) -> io::Result<Self> {
        thread::own_directory_and_umask()?;
        let proc_self_fd = rustix::fs::open("/proc/self/fd", OFlags::PATH, Mode::empty())?;
        let limits = Limits {
            descriptors,
            kept_inodes: usize::try_from(descriptors / 2).unwrap_or(usize::MAX),
        };
        let share = Share::new(root, File::from(proc_self_fd), limits)?;
        let memory = GuestMemory::from_ranges(&[(GuestAddress(0), MEMORY_BYTES)]);
        let memory = Arc::new(memory.map_err(io::Error::other)?);
        Ok(Self {
            view: View::new(Arc::clone(&memory)).map_err(io::Error::other)?,
            memory,
            server: Server::new(share),
        })
    }

    /// Whether the guest has mounted the share.
    #[must_use]
    pub fn in_session(&self) -> bool {
        self.server.in_session()
    }

    /// Carries out one message with `room` bytes for an answer; returns the answer.
    pub fn answer(&mut self, request: &[u8], room: usize) -> io::Result<Vec<u8>> {
        let request = &request[..request.len().min(PART_BYTES)];
        self.offer(request, room.min(PART_BYTES))?;
        let irq = Arc::new(Irq::new(Event::new()?));
        let mut queue = Queue::new(&STATE, STATE.size, &self.memory, Event::new()?, irq)
            .map_err(io::Error::other)?;
        let chain = queue.next(&self.memory).map_err(io::Error::other)?;
        let chain = chain.ok_or(io::ErrorKind::InvalidData)?;
        let (reader, writer) = self.view.streams(&chain).map_err(io::Error::other)?;
        let mut answer = vec![0; self.server.answer(reader, writer)];
        self.memory
            .read_slice(&mut answer, GuestAddress(ANSWER))
            .map_err(io::Error::other)?;
        Ok(answer)
    }

    /// One chain: the request in two pieces, then the room.
    fn offer(&self, request: &[u8], room: usize) -> io::Result<()> {
        let put = |bytes: &[u8], address| {
            self.memory
                .write_slice(bytes, GuestAddress(address))
                .map_err(io::Error::other)
        };
        put(request, REQUEST)?;
        let cut = request.len() / 2;
        let second = REQUEST + cut as u64;
        let parts = [
            (REQUEST, cut, 0),
            (second, request.len() - cut, 0),
            (ANSWER, room, 2u16),
        ];
        for (index, (address, length, flags)) in (0u16..).zip(parts) {
            let at = STATE.descriptors + 16 * u64::from(index);
            let length = u32::try_from(length).map_err(io::Error::other)?;
            put(&address.to_le_bytes(), at)?;
            put(&length.to_le_bytes(), at + 8)?;
            put(&(flags | u16::from(index < 2)).to_le_bytes(), at + 12)?;
            put(&(index + 1).to_le_bytes(), at + 14)?;
        }
        put(&0u16.to_le_bytes(), STATE.available + 4)?;
        put(&1u16.to_le_bytes(), STATE.available + 2)
    }
}
