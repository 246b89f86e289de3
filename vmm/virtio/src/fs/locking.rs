//! GETLK, SETLK and SETLKW, the messages about locks, of which virtiofsd's library decodes no more
//! than their opcodes.
//!
//! SETLKW is SETLK here: nobody waits in this thread. The guest's kernel, patched
//! (`guest-image/kernel/patches`), asks again while it is told `EAGAIN`, and keeps locks itself of a
//! file for which it is told `ENOSYS`.

use std::io::{self, Read};

use virtiofsd::descriptor_utils::Reader;
use virtiofsd::filesystem::Context;
use virtiofsd::fuse::{FileLock, InHeader, LkIn, LkOut, Opcode};
use vm_memory::ByteValued;

use super::locks::{Asker, Kind, Range};
use super::record::LAST;
use super::share::Share;

/// The lock is of a whole file (`FUSE_LK_FLOCK`).
const WHOLE_FILE: u32 = 1;

/// What a guest asks for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wanted {
    pub(super) asker: Asker,
    pub(super) range: Range,
    /// None: no lock any more.
    pub(super) kind: Option<Kind>,
    pub(super) whole_file: bool,
}

/// Whether `opcode` is of one of the three.
pub(super) fn is_about_locks(opcode: u32) -> bool {
    matches!(
        Opcode::try_from(opcode),
        Ok(Opcode::Getlk | Opcode::Setlk | Opcode::Setlkw)
    )
}

/// Carries out the message in `reader`; returns the body of the answer.
///
/// # Errors
/// What the guest is to be told.
pub(super) fn answer(share: &Share, header: InHeader, reader: Reader<'_>) -> io::Result<Vec<u8>> {
    share.check_locks_are_shared(header.nodeid)?;
    act(share, header, read(reader)?)
}

fn act(share: &Share, header: InHeader, wanted: Wanted) -> io::Result<Vec<u8>> {
    let (ctx, inode) = (Context::from(header), header.nodeid);
    if header.opcode != Opcode::Getlk as u32 {
        return share.set_lock(ctx, inode, wanted).map(|()| Vec::new());
    }
    let kind = wanted.kind.ok_or_else(invalid)?;
    let found = share.find_lock(ctx, inode, wanted, kind)?;
    let lk = found.map_or(
        FileLock {
            type_: libc::F_UNLCK.cast_unsigned(),
            ..FileLock::default()
        },
        |(range, kind, pid)| FileLock {
            start: range.start,
            end: range.end,
            type_: match kind {
                Kind::Shared => libc::F_RDLCK,
                Kind::Exclusive => libc::F_WRLCK,
            }
            .cast_unsigned(),
            pid,
        },
    );
    Ok(LkOut { lk }.as_slice().to_vec())
}

fn invalid() -> io::Error {
    io::Error::from_raw_os_error(libc::EINVAL)
}

fn read(mut reader: Reader<'_>) -> io::Result<Wanted> {
    let mut message = [0; size_of::<InHeader>() + size_of::<LkIn>()];
    reader.read_exact(&mut message).map_err(|_| invalid())?;
    let mut fields = LkIn::default();
    let (_, body) = message.split_at(size_of::<InHeader>());
    fields.as_mut_slice().copy_from_slice(body);
    decode(&fields).ok_or_else(invalid)
}

fn decode(fields: &LkIn) -> Option<Wanted> {
    let FileLock {
        start,
        end,
        type_,
        pid,
    } = fields.lk;
    let kind = match type_.cast_signed() {
        libc::F_RDLCK => Some(Kind::Shared),
        libc::F_WRLCK => Some(Kind::Exclusive),
        libc::F_UNLCK => None,
        _ => return None,
    };
    (start <= end && end <= LAST).then_some(Wanted {
        asker: Asker {
            owner: fields.owner,
            pid,
            handle: fields.fh,
        },
        range: Range { start, end },
        kind,
        whole_file: fields.lk_flags & WHOLE_FILE != 0,
    })
}
