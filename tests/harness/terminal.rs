//! A terminal with a person in front of it.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::process::Command;

use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{OptionalActions, OutputModes, Winsize, tcgetattr, tcsetattr, tcsetwinsize};

/// Both ends of a pseudo-terminal.
#[derive(Debug)]
pub struct Terminal {
    person: File,
    command: OwnedFd,
}

impl Terminal {
    /// A terminal of that many columns and rows.
    #[must_use]
    pub fn new(columns: u16, rows: u16) -> Self {
        let person =
            openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
        grantpt(&person).unwrap();
        unlockpt(&person).unwrap();
        let command = ioctl_tiocgptpeer(&person, OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        let terminal = Self {
            person: person.into(),
            command,
        };
        terminal.resize(columns, rows);
        terminal
    }

    /// The terminal that has this master.
    pub(crate) fn behind(master: OwnedFd) -> Self {
        let command = ioctl_tiocgptpeer(&master, OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        Self {
            person: master.into(),
            command,
        }
    }

    /// The same command with this terminal as its standard streams and its controlling terminal.
    #[must_use]
    pub fn command(&self, command: &Command) -> Command {
        let mut in_session = Command::new("setsid");
        in_session
            .args(["--ctty", "--wait"])
            .arg(command.get_program())
            .args(command.get_args());
        let end = || self.command.try_clone().unwrap();
        in_session.stdin(end()).stdout(end()).stderr(end());
        in_session
    }

    /// The window is another size now.
    pub fn resize(&self, columns: u16, rows: u16) {
        let size = Winsize {
            ws_col: columns,
            ws_row: rows,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        tcsetwinsize(&self.person, size).unwrap();
    }

    /// Whoever reads it wants line ends as they are written.
    pub fn keep_newlines(&self) {
        let mut mode = tcgetattr(&self.person).unwrap();
        mode.output_modes.remove(OutputModes::ONLCR);
        tcsetattr(&self.person, OptionalActions::Now, &mode).unwrap();
    }

    /// Types.
    pub fn type_in(&mut self, text: &str) {
        self.person.write_all(text.as_bytes()).unwrap();
    }

    /// Reads until `text` has been shown; returns all that was.
    pub fn read_until(&mut self, text: &str) -> String {
        let mut shown = Vec::new();
        let mut byte = [0];
        while !shown.ends_with(text.as_bytes()) {
            match self.person.read(&mut byte) {
                Ok(1) => shown.push(byte[0]),
                end => panic!(
                    "{end:?}: {text:?} is not in {:?}",
                    String::from_utf8_lossy(&shown)
                ),
            }
        }
        String::from_utf8_lossy(&shown).into_owned()
    }

    /// Whether typed lines are echoed and edited, as a shell expects its terminal to be.
    #[must_use]
    pub fn is_cooked(&self) -> bool {
        let modes = tcgetattr(&self.command).unwrap().local_modes;
        modes.contains(rustix::termios::LocalModes::ICANON | rustix::termios::LocalModes::ECHO)
    }
}
