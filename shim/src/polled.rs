//! Descriptors the runtime waits for.

use std::io;
use std::os::fd::OwnedFd;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// A descriptor the runtime waits for. What is done with it must not block.
pub(crate) type Polled = AsyncFd<OwnedFd>;

/// Waits for `fd` to become readable or writable.
pub(crate) fn watch(fd: OwnedFd) -> io::Result<Polled> {
    watch_for(fd, Interest::READABLE | Interest::WRITABLE).map_err(|(_, error)| error)
}

/// Waits for `fd` to become what `interest` says. One that cannot be waited for comes back, with `EPERM`.
pub(crate) fn watch_for(fd: OwnedFd, interest: Interest) -> Result<Polled, (OwnedFd, io::Error)> {
    // SAFETY: an `OwnedFd` is open, is the same description as long as it lives, and always gives the same number; the
    // `AsyncFd` owns it and hands out shared references only.
    let registered = unsafe { AsyncFd::register_with_interest(fd, interest) };
    registered.map_err(|refused| refused.into_parts())
}
