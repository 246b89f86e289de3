//! TMPFILE, the message with which a guest opens a file without a name. virtiofsd's library decodes
//! it no further than its opcode.
//!
//! It is laid out as CREATE is: flags, mode and umask, a name that means nothing, then extensions,
//! of which one names the group of the caller's that the directory belongs to. The answer is
//! CREATE's, an inode and a handle.

use std::io::{self, Read};

use virtiofsd::descriptor_utils::Reader;
use virtiofsd::filesystem::Context;
use virtiofsd::fuse::{CreateIn, EntryOut, InHeader, OPEN_KILL_SUIDGID, OpenOut};
use virtiofsd::soft_idmap::HostGid;
use vm_memory::ByteValued;

use super::share::Share;

/// A whole message: a name as long as names may be, and an extension with a group. Linux sends one
/// group.
const MESSAGE_BYTES_MAX: usize = 1024;
/// The extension of groups (`FUSE_EXT_GROUPS`).
const GROUPS: u32 = 32;

/// What a guest asks for.
#[derive(Debug)]
pub(super) struct Wanted {
    pub(super) flags: u32,
    pub(super) mode: u32,
    pub(super) umask: u32,
    pub(super) kill_priv: bool,
    pub(super) groups: Vec<HostGid>,
}

/// Carries out the message in `reader`; returns the body of the answer.
///
/// # Errors
/// What the guest is to be told.
pub(super) fn answer(share: &Share, header: InHeader, reader: Reader<'_>) -> io::Result<Vec<u8>> {
    let wanted = read(reader)?;
    let (entry, handle, options) =
        share.make_unnamed(Context::from(header), header.nodeid, &wanted)?;
    let open = OpenOut {
        fh: handle,
        open_flags: options.bits(),
        ..OpenOut::default()
    };
    Ok([EntryOut::from(entry).as_slice(), open.as_slice()].concat())
}

fn invalid() -> io::Error {
    io::Error::from_raw_os_error(libc::EINVAL)
}

fn read(mut reader: Reader<'_>) -> io::Result<Wanted> {
    if reader.available_bytes() > MESSAGE_BYTES_MAX {
        return Err(invalid());
    }
    let mut message = vec![0; reader.available_bytes()];
    reader.read_exact(&mut message)?;
    decode(&message).ok_or_else(invalid)
}

fn decode(message: &[u8]) -> Option<Wanted> {
    let body = message.get(size_of::<InHeader>()..)?;
    let (create, rest) = body.split_at_checked(size_of::<CreateIn>())?;
    let mut fields = CreateIn::default();
    fields.as_mut_slice().copy_from_slice(create);
    let name = rest.iter().position(|byte| *byte == 0)?;
    Some(Wanted {
        flags: fields.flags,
        mode: fields.mode & !libc::S_IFMT,
        umask: fields.umask,
        kill_priv: fields.open_flags & OPEN_KILL_SUIDGID != 0,
        groups: groups(rest.get(name + 1..)?)?,
    })
}

/// The groups in `extensions`: a header of length and kind, then how many there are, then each.
fn groups(mut extensions: &[u8]) -> Option<Vec<HostGid>> {
    let mut groups = Vec::new();
    while !extensions.is_empty() {
        let length = usize::try_from(number(extensions, 0)?).ok()?;
        let kind = number(extensions, 1)?;
        let extension = extensions.get(..length)?;
        if kind != GROUPS || !groups.is_empty() {
            return None;
        }
        let count = number(extension, 2)?;
        for index in 0..usize::try_from(count).ok()? {
            groups.push(HostGid::from(number(extension, 3 + index)?));
        }
        extensions = extensions.get(length.max(1)..)?;
    }
    Some(groups)
}

/// The number at `index` of numbers of 32 bits.
fn number(bytes: &[u8], index: usize) -> Option<u32> {
    let size = size_of::<u32>();
    let bytes = bytes.get(index.checked_mul(size)?..)?.first_chunk()?;
    Some(u32::from_le_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(extensions: &[u32]) -> Vec<u8> {
        let mut message = vec![0; size_of::<InHeader>() + size_of::<CreateIn>()];
        message.extend_from_slice(b"/\0");
        message.extend(extensions.iter().flat_map(|number| number.to_le_bytes()));
        message
    }

    #[test]
    fn groups_are_those_of_the_extension() {
        assert!(decode(&message(&[])).unwrap().groups.is_empty());
        let groups = decode(&message(&[16, GROUPS, 1, 77])).unwrap().groups;
        assert_eq!(groups, [HostGid::from(77)]);
    }

    #[test]
    fn messages_that_lie_are_refused() {
        for extensions in [
            &[0][..],
            &[16],
            &[0, GROUPS, 1, 77],
            &[8, GROUPS],
            &[16, 1, 1, 77],
            &[16, GROUPS, 2, 77],
            &[16, GROUPS, u32::MAX, 77],
            &[u32::MAX, GROUPS, 1, 77],
            &[16, GROUPS, 1, 77, 16, GROUPS, 1, 77],
        ] {
            assert!(decode(&message(extensions)).is_none(), "{extensions:?}");
        }
        assert!(decode(&[0; 50]).is_none());
    }
}
