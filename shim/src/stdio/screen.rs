//! What a process's terminal is shown on, as far as the guest's terminal has to be like it.
//!
//! A guest's terminal ends its lines with a carriage return and a newline, as terminals do. Whoever takes the bytes for something else says so by
//! clearing ONLCR before the start, as `recvtty` and other engines do with the master that they were sent; a file or a pipe says so by what it is.
//! A FIFO is an engine's that has no terminal to say it with.

use std::os::fd::OwnedFd;

use rustix::termios::{OutputModes, isatty, tcgetattr, tcgetwinsize};

/// What the process is to find.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Window {
    /// 0: not known.
    pub(crate) columns: u16,
    pub(crate) rows: u16,
    /// Line ends are passed on as they are.
    pub(crate) keep_newlines: bool,
}

/// See the module.
#[derive(Debug)]
pub(super) enum Screen {
    Terminal(OwnedFd),
    Other,
}

impl Screen {
    /// What `fd`, which was lent, is.
    pub(super) fn of(fd: &OwnedFd) -> std::io::Result<Self> {
        if isatty(fd) {
            Ok(Self::Terminal(fd.try_clone()?))
        } else {
            Ok(Self::Other)
        }
    }

    /// As it is now. A terminal that has been closed says nothing.
    pub(super) fn window(&self) -> Window {
        match self {
            Self::Other => Window {
                keep_newlines: true,
                ..Window::default()
            },
            Self::Terminal(fd) => {
                let size = tcgetwinsize(fd).ok();
                let mode = tcgetattr(fd).ok();
                Window {
                    columns: size.map_or(0, |size| size.ws_col),
                    rows: size.map_or(0, |size| size.ws_row),
                    keep_newlines: mode
                        .is_some_and(|mode| !mode.output_modes.contains(OutputModes::ONLCR)),
                }
            }
        }
    }
}
