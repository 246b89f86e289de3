//! Descriptors the supervisor passed by number.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use rustix::io::{Errno, FdFlags, fcntl_getfd, fcntl_setfd};

/// Takes over a descriptor that was open when the process began, and keeps it from being inherited
/// any further. The standard three are nobody's.
///
/// # Errors
/// `EBADF` for a number that is not open, and for one that was opened or taken since: what outlives
/// an `execve` is not marked to be closed by one, and everything that this program opens is, as are
/// those that were taken.
pub fn take(number: RawFd) -> io::Result<OwnedFd> {
    let not_passed = || io::Error::from(Errno::BADF);
    if number <= libc::STDERR_FILENO {
        return Err(not_passed());
    }
    // SAFETY: borrowed for the two calls below only, which fail on a number that is not open.
    let fd = unsafe { BorrowedFd::borrow_raw(number) };
    let flags = fcntl_getfd(fd.as_fd())?;
    if flags.contains(FdFlags::CLOEXEC) {
        return Err(not_passed());
    }
    fcntl_setfd(fd.as_fd(), flags | FdFlags::CLOEXEC)?;
    // SAFETY: it is open, and nothing else in the process owns it: it was not marked.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

#[cfg(test)]
mod tests {
    use std::os::fd::IntoRawFd as _;

    use super::*;

    #[test]
    fn descriptor_is_taken_once_and_what_was_opened_here_never() {
        let opened = tempfile::tempfile().unwrap();
        assert!(take(std::os::fd::AsRawFd::as_raw_fd(&opened)).is_err());
        let flags = fcntl_getfd(&opened).unwrap();
        fcntl_setfd(&opened, flags.difference(FdFlags::CLOEXEC)).unwrap();
        let number = opened.into_raw_fd();
        let taken = take(number).unwrap();
        assert!(take(number).is_err());
        drop(taken);
        assert!(take(i32::MAX).is_err());
        assert!(take(1).is_err());
    }
}
