//! `readv` and `writev` between a non-blocking stream and pieces of guest memory: one system call
//! for as many pieces as the kernel takes. A guest cuts a packet as it likes, to pieces of one
//! byte.

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd};

use vm_memory::VolatileSlice;

/// What one call takes: the kernel's own limit (`IOV_MAX`).
pub(super) const PIECES_MAX: usize = 1024;

type Call = unsafe extern "C" fn(libc::c_int, *const libc::iovec, libc::c_int) -> libc::ssize_t;

/// Reads into `pieces`, the first [`PIECES_MAX`] of them.
pub(super) fn read<'m>(
    stream: BorrowedFd<'_>,
    pieces: impl Iterator<Item = VolatileSlice<'m>>,
) -> io::Result<usize> {
    transfer(libc::readv, stream, pieces)
}

/// Writes `pieces`, the first [`PIECES_MAX`] of them.
pub(super) fn write<'m>(
    stream: BorrowedFd<'_>,
    pieces: impl Iterator<Item = VolatileSlice<'m>>,
) -> io::Result<usize> {
    transfer(libc::writev, stream, pieces)
}

fn transfer<'m>(
    call: Call,
    stream: BorrowedFd<'_>,
    pieces: impl Iterator<Item = VolatileSlice<'m>>,
) -> io::Result<usize> {
    let guards: Vec<_> = pieces
        .take(PIECES_MAX)
        .map(|piece| (piece.ptr_guard_mut(), piece.len()))
        .collect();
    let vectors: Vec<_> = guards
        .iter()
        .map(|(guard, length)| libc::iovec {
            iov_base: guard.as_ptr().cast(),
            iov_len: *length,
        })
        .collect();
    let count = libc::c_int::try_from(vectors.len()).map_err(io::Error::other)?;
    loop {
        // SAFETY: each vector is a piece of guest memory, which its guard holds in place until this
        // function returns; no reference to it exists, and what the kernel writes there, any bytes,
        // is valid.
        let result = unsafe { call(stream.as_raw_fd(), vectors.as_ptr(), count) };
        match usize::try_from(result) {
            Ok(count) => return Ok(count),
            Err(_) => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
    }
}
