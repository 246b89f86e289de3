//! A session's INIT, said again to a new server: how a session that was saved in one process begins in another.
//!
//! A server takes requests as descriptor chains in memory and in no other way, so the request is laid out in a page of memory of its own, in a
//! queue of one chain.

use std::io;
use std::sync::Arc;

use vm_memory::{Bytes, GuestAddress};

use super::server::{OUT_HEADER_BYTES, Server};
use super::view::View;
use crate::{Event, GuestMemory, Irq, Queue, QueueState};

const MEMORY_BYTES: usize = 4096;
const STATE: QueueState = QueueState {
    size: 2,
    descriptors: 0,
    available: 0x100,
    used: 0x200,
    next_available: 0,
    next_used: 0,
    event_index: false,
};
const REQUEST: u64 = 0x400;
const ANSWER: u64 = 0x800;
/// Each of the two has this much room.
const PART_BYTES: u32 = 0x400;

/// Descriptor flags (virtio 1.2, section 2.7.5).
const NEXT: u16 = 1;
const WRITE: u16 = 2;

/// Says `init` to `server`. `event` stands for the kick and the interrupt that nobody waits for, since a confined thread makes no new ones.
///
/// # Errors
/// The request is too long to be one, or the server refuses it.
pub(super) fn begin_again(server: &mut Server, init: &[u8], event: &Event) -> io::Result<()> {
    let memory = Arc::new(lay_out(init)?);
    let irq = Arc::new(Irq::new(event.try_clone()?));
    let mut queue = Queue::new(&STATE, STATE.size, &memory, event.try_clone()?, irq)
        .map_err(io::Error::other)?;
    let view = View::new(Arc::clone(&memory)).map_err(io::Error::other)?;
    let chain = queue.next(&memory).map_err(io::Error::other)?;
    let chain = chain.ok_or(io::ErrorKind::InvalidData)?;
    let (reader, writer) = view.streams(&chain).map_err(io::Error::other)?;
    if server.answer(reader, writer) <= OUT_HEADER_BYTES {
        return Err(io::ErrorKind::InvalidData.into());
    }
    Ok(())
}

fn lay_out(init: &[u8]) -> io::Result<GuestMemory> {
    let length = u32::try_from(init.len()).ok();
    let length = length
        .filter(|length| *length <= PART_BYTES)
        .ok_or(io::ErrorKind::InvalidData)?;
    let memory =
        GuestMemory::from_ranges(&[(GuestAddress(0), MEMORY_BYTES)]).map_err(io::Error::other)?;
    let put = |bytes: &[u8], address| {
        memory
            .write_slice(bytes, GuestAddress(address))
            .map_err(io::Error::other)
    };
    put(init, REQUEST)?;
    let parts = [(REQUEST, length, NEXT), (ANSWER, PART_BYTES, WRITE)];
    for (at, (address, length, flags)) in (STATE.descriptors..).step_by(16).zip(parts) {
        put(&address.to_le_bytes(), at)?;
        put(&length.to_le_bytes(), at + 8)?;
        put(&flags.to_le_bytes(), at + 12)?;
        put(&1u16.to_le_bytes(), at + 14)?;
    }
    // One chain is available, and its head is descriptor 0.
    put(&1u16.to_le_bytes(), STATE.available + 2)?;
    Ok(memory)
}
