//! One FUSE message in, one out.
//!
//! Short primer on FUSE (Linux `Documentation/filesystems/fuse.rst`, `include/uapi/linux/fuse.h`) as virtio-fs carries it (virtio 1.2, section
//! 5.11.6): the device-readable part of a chain is a header of 40 bytes – length, opcode, a number that names the request, the inode it is
//! about, the caller's uid, gid and pid – then the operation's own structure, names ended by NUL, and data. The device-writable part takes a
//! header of 16 bytes – length, a negated errno or 0, the request's number – then the operation's result.
//!
//! - INIT agrees on a version and on features; DESTROY ends the session.
//! - LOOKUP (and whatever creates) returns an inode by number; the guest holds it until it says FORGET as often as it was told of it.
//! - OPEN and OPENDIR return a handle for READ, WRITE, READDIR; RELEASE gives it back.
//! - FORGET, BATCH_FORGET, INTERRUPT and DESTROY are not answered: their chains are completed with 0 bytes.
//!
//! The operations are virtiofsd's; [`Share`] stands between. Lengths lie, so this side asks for room for an answer before anything is done, and
//! answers what the library could not decode with `EINVAL`. The largest message is 1 MiB and a page; the library refuses a longer one.

use std::fmt;
use std::io::Write;

use virtiofsd::descriptor_utils::{Reader, Writer};
use virtiofsd::fuse::{InHeader, Opcode, OutHeader};
use vm_memory::ByteValued;

use super::share::Share;

const IN_HEADER_BYTES: usize = size_of::<InHeader>();
const OUT_HEADER_BYTES: usize = size_of::<OutHeader>();

const INIT: u32 = Opcode::Init as u32;
const DESTROY: u32 = Opcode::Destroy as u32;

/// The FUSE server of one share.
pub(super) struct Server {
    fuse: virtiofsd::server::Server<Share>,
    in_session: bool,
}

impl Server {
    pub(super) fn new(share: Share) -> Self {
        Self {
            fuse: virtiofsd::server::Server::new(share),
            in_session: false,
        }
    }

    /// Whether the guest has the share mounted.
    pub(super) fn in_session(&self) -> bool {
        self.in_session
    }

    /// Carries out the request in `reader`, writes the answer to `writer`, and returns how many bytes of it are valid. 0 where there is no
    /// answer, and where the chain is too short for a request or for any answer.
    pub(super) fn answer(&mut self, reader: Reader<'_>, writer: Writer<'_>) -> usize {
        let Some(header) = peek(&reader) else {
            return 0;
        };
        let answered = is_answered(header.opcode);
        if answered && writer.available_bytes() < OUT_HEADER_BYTES {
            return 0;
        }
        match header.opcode {
            INIT => self.in_session = true,
            DESTROY => self.in_session = false,
            _ => {}
        }
        match self
            .fuse
            .handle_message(reader, writer.clone(), None::<&mut ()>)
        {
            Ok(written) => written,
            Err(_) if answered => refuse(writer, header.unique),
            Err(_) => 0,
        }
    }
}

fn peek(reader: &Reader<'_>) -> Option<InHeader> {
    if reader.available_bytes() < IN_HEADER_BYTES {
        return None;
    }
    reader.clone().read_obj().ok()
}

fn is_answered(opcode: u32) -> bool {
    !matches!(
        Opcode::try_from(opcode),
        Ok(Opcode::Forget | Opcode::BatchForget | Opcode::Interrupt | Opcode::Destroy)
    )
}

/// Says that the request made no sense, over whatever part of an answer there is.
fn refuse(mut writer: Writer<'_>, unique: u64) -> usize {
    let header = OutHeader {
        len: 16,
        error: -libc::EINVAL,
        unique,
    };
    match writer.write_all(header.as_slice()) {
        Ok(()) => OUT_HEADER_BYTES,
        Err(_) => 0,
    }
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server")
            .field("in_session", &self.in_session)
            .finish_non_exhaustive()
    }
}
