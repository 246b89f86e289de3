//! Locks of an open file description (`F_OFD_SETLK`), for which no crate here has a call.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;

use super::locks::{Kind, Range};

/// The last position there is (`OFFSET_MAX`).
pub(super) const LAST: u64 = i64::MAX.cast_unsigned();

/// Locks `range`, or with no kind unlocks it, and does not wait.
///
/// # Errors
/// `EAGAIN` where somebody else has it, `ENOLCK`, and `EBADF` where `file` is not opened for it.
pub(super) fn set(file: &File, range: Range, kind: Option<Kind>) -> io::Result<()> {
    let mut record = record(range, kind)?;
    call(file, libc::F_OFD_SETLK, &mut record)
}

/// The lock that keeps one of `kind` out, by whoever but `file` has it.
///
/// # Errors
/// Those of the file system.
pub(super) fn find(file: &File, range: Range, kind: Kind) -> io::Result<Option<(Range, Kind)>> {
    let mut record = record(range, Some(kind))?;
    call(file, libc::F_OFD_GETLK, &mut record)?;
    let found = match i32::from(record.l_type) {
        libc::F_RDLCK => Kind::Shared,
        libc::F_WRLCK => Kind::Exclusive,
        _ => return Ok(None),
    };
    let start = record.l_start.cast_unsigned();
    let end = match record.l_len.cast_unsigned() {
        0 => LAST,
        length => start.saturating_add(length - 1),
    };
    Ok(Some((Range { start, end }, found)))
}

fn record(range: Range, kind: Option<Kind>) -> io::Result<libc::flock> {
    let invalid = |_| io::Error::from_raw_os_error(libc::EINVAL);
    let to_the_end = range.end >= LAST;
    // 0: to the end of the file, wherever that comes to be.
    let length = if to_the_end {
        0
    } else {
        range.end.saturating_sub(range.start) + 1
    };
    let number = match kind {
        Some(Kind::Shared) => libc::F_RDLCK,
        Some(Kind::Exclusive) => libc::F_WRLCK,
        None => libc::F_UNLCK,
    };
    Ok(libc::flock {
        l_type: i16::try_from(number).map_err(invalid)?,
        l_whence: i16::try_from(libc::SEEK_SET).map_err(invalid)?,
        l_start: i64::try_from(range.start).map_err(invalid)?,
        l_len: i64::try_from(length).map_err(invalid)?,
        l_pid: 0,
    })
}

fn call(file: &File, command: libc::c_int, record: &mut libc::flock) -> io::Result<()> {
    // SAFETY: both commands read and write one `flock`, which is borrowed for the call, and the
    // descriptor is open for as long.
    let done = unsafe { libc::fcntl(file.as_raw_fd(), command, std::ptr::from_mut(record)) };
    if done < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
