//! The size of a container's terminal when nobody is in front of it but an engine that has the master.
//!
//! The kernel tells a change of size (`SIGWINCH`) to the session that has the terminal. A lent terminal that has none becomes that of the
//! supervisor's session; one that has is followed by whoever lent it, through the Task API.

use std::io;
use std::os::fd::OwnedFd;

use rustix::process::ioctl_tiocsctty;
use rustix::termios::{isatty, tcgetwinsize};

/// The supervisor's controlling terminal.
#[derive(Debug)]
pub(crate) struct Console(OwnedFd);

impl Console {
    /// Takes `fd` as controlling terminal; None when it is none that could be.
    pub(super) fn adopt(fd: &OwnedFd) -> io::Result<Option<Self>> {
        if !isatty(fd) || ioctl_tiocsctty(fd).is_err() {
            return Ok(None);
        }
        Ok(Some(Self(fd.try_clone()?)))
    }

    /// Columns and rows.
    pub(crate) fn size(&self) -> io::Result<(u16, u16)> {
        let size = tcgetwinsize(&self.0)?;
        Ok((size.ws_col, size.ws_row))
    }
}
