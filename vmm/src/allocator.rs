//! How the C library's allocator is to behave.
//!
//! By default it makes an arena per thread, and before it makes one too many it reads the number of CPUs from `/sys`, which is out of reach in
//! the jail and no call that a confined thread may make. One arena is also the smallest.

use std::io;

/// One arena for all threads. To be called before there is a second thread.
pub fn use_one_arena() -> io::Result<()> {
    // SAFETY: sets a number in the allocator; no other thread exists that could be in it.
    match unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) } {
        1 => Ok(()),
        _ => Err(io::ErrorKind::Unsupported.into()),
    }
}
