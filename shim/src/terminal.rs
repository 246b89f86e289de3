//! The user's terminal. The container's terminal is in the guest; ours only has to pass every byte through, which is what
//! raw mode is for.
//!
//! Happy path: [`Terminal::find`] (there is one), [`Terminal::raw`], the container runs, the guard is dropped and the terminal is as before.
//! Ways to fail: the descriptor is no terminal; it went away in between.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use rustix::termios::{
    OptionalActions, Termios, Winsize, isatty, tcgetattr, tcgetwinsize, tcsetattr,
};

/// Why the terminal cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TerminalError {
    /// No standard stream is one, and there is none that controls this process.
    #[error(
        "process.terminal is true but there is no terminal: neither standard error, output nor input is one, and /dev/tty cannot be opened"
    )]
    None(#[source] io::Error),
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
    /// The terminal that this process was called on. Some of its streams may lead elsewhere: the first of standard error, output and input
    /// that is a terminal, else the controlling one.
    pub(crate) fn find() -> Result<Self, TerminalError> {
        let (error, output, input) = (io::stderr(), io::stdout(), io::stdin());
        if let Some(found) = Self::first_of(&[error.as_fd(), output.as_fd(), input.as_fd()])? {
            return Ok(found);
        }
        let flags = OFlags::RDWR | OFlags::CLOEXEC;
        let fd = rustix::fs::open("/dev/tty", flags, Mode::empty())
            .map_err(|e| TerminalError::None(e.into()))?;
        Ok(Self { fd })
    }

    /// The terminal on standard input, which a process in the background was given as its own.
    pub(crate) fn given() -> Result<Self, TerminalError> {
        let no_terminal = || TerminalError::None(io::ErrorKind::NotFound.into());
        Self::first_of(&[io::stdin().as_fd()])?.ok_or_else(no_terminal)
    }

    fn first_of(streams: &[BorrowedFd<'_>]) -> Result<Option<Self>, TerminalError> {
        let Some(found) = streams.iter().find(|fd| isatty(**fd)) else {
            return Ok(None);
        };
        let fd = found.try_clone_to_owned().map_err(|e| failed("open", e))?;
        Ok(Some(Self { fd }))
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

    fn opened(user: &OwnedFd) -> Terminal {
        Terminal::first_of(&[user.as_fd()]).unwrap().unwrap()
    }

    #[test]
    fn raw_mode_ends_with_its_guard() {
        let (_control, user) = pty();
        let terminal = opened(&user);
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
        let seen = opened(&user).size().unwrap();
        assert_eq!((seen.ws_col, seen.ws_row), (111, 33));
    }

    #[test]
    fn the_first_stream_that_is_a_terminal_counts() {
        let file = tempfile::tempfile().unwrap();
        let (_control, user) = pty();
        let found = Terminal::first_of(&[file.as_fd(), user.as_fd(), file.as_fd()]);
        let name = |fd: BorrowedFd<'_>| rustix::termios::ttyname(fd, Vec::new()).unwrap();
        let found = found.unwrap().unwrap();
        assert_eq!(name(found.fd.as_fd()), name(user.as_fd()));
        assert!(Terminal::first_of(&[file.as_fd()]).unwrap().is_none());
    }
}
