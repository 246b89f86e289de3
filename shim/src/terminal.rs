//! The user's terminal. The container's terminal is in the guest; ours only has to pass every byte through, which is what
//! raw mode is for.
//!
//! Happy path: [`Terminal::open`] (it is one), [`Terminal::raw`], the container runs, the guard is dropped and the terminal is as before.
//! Ways to fail: the descriptor is no terminal; it went away in between.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::termios::{
    OptionalActions, Termios, Winsize, isatty, tcgetattr, tcgetwinsize, tcsetattr,
};

/// Why the terminal cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TerminalError {
    /// The descriptor is a file, a pipe or a socket.
    #[error(
        "process.terminal is true but standard input is not a terminal; run husk on one, or set process.terminal to false"
    )]
    NotATerminal,
    /// The terminal refused.
    #[error("cannot {action} the terminal")]
    Io {
        /// What was to be done.
        action: &'static str,
        #[source]
        source: io::Error,
    },
}

/// A terminal in whatever mode it is.
#[derive(Debug)]
pub(crate) struct Terminal {
    fd: OwnedFd,
}

/// A terminal in raw mode; dropping this puts it back into the mode it was in.
#[derive(Debug)]
pub(crate) struct RawMode<'a> {
    terminal: &'a Terminal,
    saved: Termios,
}

impl Terminal {
    /// The terminal behind `fd`.
    pub(crate) fn open(fd: BorrowedFd<'_>) -> Result<Self, TerminalError> {
        if !isatty(fd) {
            return Err(TerminalError::NotATerminal);
        }
        let fd = fd.try_clone_to_owned().map_err(|e| failed("open", e))?;
        Ok(Self { fd })
    }

    /// Its size in characters.
    pub(crate) fn size(&self) -> Result<Winsize, TerminalError> {
        tcgetwinsize(&self.fd).map_err(|e| failed("ask the size of", e))
    }

    /// Switches to raw mode: no echo, no line editing, no signals from keys, no translation of line ends.
    pub(crate) fn raw(&self) -> Result<RawMode<'_>, TerminalError> {
        let saved = tcgetattr(&self.fd).map_err(|e| failed("read the mode of", e))?;
        let mut raw = saved.clone();
        raw.make_raw();
        set(self.fd.as_fd(), &raw).map_err(|e| failed("set the mode of", e))?;
        Ok(RawMode {
            terminal: self,
            saved,
        })
    }
}

impl Drop for RawMode<'_> {
    fn drop(&mut self) {
        if let Err(error) = set(self.terminal.fd.as_fd(), &self.saved) {
            tracing::warn!(%error, "the terminal's mode could not be restored");
        }
    }
}

/// After what was written has gone out, so that the container's last bytes are not translated.
fn set(fd: BorrowedFd<'_>, mode: &Termios) -> rustix::io::Result<()> {
    rustix::io::retry_on_intr(|| tcsetattr(fd, OptionalActions::Drain, mode))
}

fn failed(action: &'static str, error: impl Into<io::Error>) -> TerminalError {
    TerminalError::Io {
        action,
        source: error.into(),
    }
}

#[cfg(test)]
mod tests {
    use rustix::fs::{Mode, OFlags};
    use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
    use rustix::termios::{LocalModes, OutputModes, tcsetwinsize};

    use super::*;

    /// Both ends of a new pseudo-terminal.
    fn pty() -> (OwnedFd, OwnedFd) {
        let control = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&control).unwrap();
        unlockpt(&control).unwrap();
        let name = ptsname(&control, Vec::new()).unwrap();
        let user = rustix::fs::open(name, OFlags::RDWR | OFlags::NOCTTY, Mode::empty()).unwrap();
        (control, user)
    }

    #[test]
    fn raw_mode_ends_with_its_guard() {
        let (_control, user) = pty();
        let terminal = Terminal::open(user.as_fd()).unwrap();
        let before = tcgetattr(&user).unwrap();
        {
            let _raw = terminal.raw().unwrap();
            let during = tcgetattr(&user).unwrap();
            let cooked = LocalModes::ECHO | LocalModes::ICANON | LocalModes::ISIG;
            assert!(!during.local_modes.intersects(cooked));
            assert!(!during.output_modes.contains(OutputModes::OPOST));
        }
        let after = tcgetattr(&user).unwrap();
        assert_eq!(after.local_modes, before.local_modes);
        assert_eq!(after.output_modes, before.output_modes);
        assert_eq!(after.input_modes, before.input_modes);
    }

    #[test]
    fn size_is_the_terminals() {
        let (control, user) = pty();
        let size = Winsize {
            ws_row: 33,
            ws_col: 111,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        tcsetwinsize(&control, size).unwrap();
        let seen = Terminal::open(user.as_fd()).unwrap().size().unwrap();
        assert_eq!((seen.ws_col, seen.ws_row), (111, 33));
    }

    #[test]
    fn file_is_refused() {
        let file = tempfile::tempfile().unwrap();
        assert!(matches!(
            Terminal::open(file.as_fd()),
            Err(TerminalError::NotATerminal)
        ));
    }
}
