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
use std::io::{self, Read, Write};
use std::sync::{Arc, Mutex};

use virtiofsd::descriptor_utils::{Reader, Writer};
use virtiofsd::fuse::{InHeader, InitInCompat, InitInExt, Opcode, OutHeader};
use vm_memory::ByteValued;

use super::policy::Nodes;
use super::share::{Share, lock};
use super::{locking, tmpfile};

const IN_HEADER_BYTES: usize = size_of::<InHeader>();
pub(super) const OUT_HEADER_BYTES: usize = size_of::<OutHeader>();
/// An INIT with its extension.
const INIT_BYTES_MAX: usize = IN_HEADER_BYTES + size_of::<InitInCompat>() + size_of::<InitInExt>();

const INIT: u32 = Opcode::Init as u32;
const DESTROY: u32 = Opcode::Destroy as u32;
const TMPFILE: u32 = Opcode::TmpFile as u32;
const READDIRPLUS: u32 = Opcode::Readdirplus as u32;

/// The FUSE server of one share.
pub(super) struct Server {
    fuse: virtiofsd::server::Server<Share>,
    share: Share,
    nodes: Arc<Mutex<Nodes>>,
    /// The INIT that began the session there is.
    session: Option<Vec<u8>>,
}

impl Server {
    pub(super) fn new(share: Share) -> Self {
        Self {
            nodes: share.nodes(),
            fuse: virtiofsd::server::Server::new(share.clone()),
            share,
            session: None,
        }
    }

    /// Whether the guest has the share mounted.
    pub(super) fn in_session(&self) -> bool {
        self.session.is_some()
    }

    /// The request that begins this session in another server: there is one while the guest holds no inode but the root.
    pub(super) fn init(&self) -> Option<&[u8]> {
        let unused = lock(&self.nodes).is_empty();
        self.session.as_deref().filter(|_| unused)
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
        let init = (header.opcode == INIT).then(|| head_of(&reader));
        let own = if header.opcode == TMPFILE {
            Some(tmpfile::answer(&self.share, header, reader.clone()))
        } else if locking::is_about_locks(header.opcode) {
            Some(locking::answer(&self.share, header, reader.clone()))
        } else {
            None
        };
        if let Some(done) = own {
            return reply(writer.clone(), header.unique, done)
                .unwrap_or_else(|_| refuse(writer, header.unique));
        }
        self.share.set_listing(header.opcode == READDIRPLUS);
        let handled = self
            .fuse
            .handle_message(reader, writer.clone(), None::<&mut ()>);
        match (handled, init) {
            // No error is longer than its header.
            (Ok(written), Some(init)) => {
                self.session = init.filter(|_| written > OUT_HEADER_BYTES);
                written
            }
            (Ok(written), None) => {
                if header.opcode == DESTROY {
                    self.session = None;
                }
                written
            }
            (Err(_), _) if answered => refuse(writer, header.unique),
            (Err(_), _) => 0,
        }
    }
}

fn peek(reader: &Reader<'_>) -> Option<InHeader> {
    if reader.available_bytes() < IN_HEADER_BYTES {
        return None;
    }
    reader.clone().read_obj().ok()
}

/// A copy of an INIT, whatever follows it left out.
fn head_of(reader: &Reader<'_>) -> Option<Vec<u8>> {
    let length = reader.available_bytes().min(INIT_BYTES_MAX);
    let mut bytes = vec![0; length];
    reader.clone().read_exact(&mut bytes).ok()?;
    Some(bytes)
}

fn is_answered(opcode: u32) -> bool {
    !matches!(
        Opcode::try_from(opcode),
        Ok(Opcode::Forget | Opcode::BatchForget | Opcode::Interrupt | Opcode::Destroy)
    )
}

/// Answers a message that the library does not decode, with the body of the answer or an error.
fn reply(mut writer: Writer<'_>, unique: u64, done: io::Result<Vec<u8>>) -> io::Result<usize> {
    let (error, body) = match done {
        Ok(body) => (0, body),
        Err(error) => (-error.raw_os_error().unwrap_or(libc::EIO), Vec::new()),
    };
    let length = OUT_HEADER_BYTES + body.len();
    let header = OutHeader {
        len: u32::try_from(length).map_err(io::Error::other)?,
        error,
        unique,
    };
    writer.write_all(&[header.as_slice(), &body].concat())?;
    Ok(length)
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
            .field("session", &self.session)
            .finish_non_exhaustive()
    }
}
