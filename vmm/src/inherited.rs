//! Descriptors the supervisor passed by number.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use rustix::io::{FdFlags, fcntl_getfd, fcntl_setfd};

/// Takes over a descriptor that was open when the process began, and keeps it from being inherited any further.
///
/// Each number may be taken once, before anything else is opened.
pub fn take(number: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: borrowed for the two calls below only, which fail on a number that is not open.
    let fd = unsafe { BorrowedFd::borrow_raw(number) };
    let flags = fcntl_getfd(fd.as_fd())?;
    fcntl_setfd(fd.as_fd(), flags | FdFlags::CLOEXEC)?;
    // SAFETY: it is open, and by this function's contract nothing else in the process owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}
