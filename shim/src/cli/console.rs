//! A terminal for a process in the background: the engine gets the master, husk keeps the slave.
//!
//! ```text
//!   engine listens on --console-socket ◄── master (SCM_RIGHTS, the slave's name as data) ── husk makes a pseudo-terminal
//!                                          slave, raw ──► the supervisor ──► the terminal in the guest
//! ```
//!
//! Modes, echo and signal keys are the guest's; here every byte passes. A size that the engine sets on the master reaches the
//! guest's terminal. Ways to fail: nobody listens on the socket.

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, ptsname, unlockpt};
use rustix::termios::{OptionalActions, tcgetattr, tcsetattr};

/// Why there is no terminal.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConsoleError {
    #[error("cannot make a terminal")]
    Make(#[source] io::Error),
    #[error("cannot send the terminal to the console socket {}", path.display())]
    Send {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// In the words that callers know from runc.
    #[error("cannot allocate tty if husk will detach without setting console socket")]
    NoSocket,
    #[error("cannot use console socket if husk will not detach or allocate tty")]
    NotWanted,
}

/// The terminal of a process in the background, if it is to have one: made, its master sent to `socket`, its slave returned.
pub(super) fn of_background(
    terminal: bool,
    socket: Option<&Path>,
) -> Result<Option<OwnedFd>, ConsoleError> {
    match (terminal, socket) {
        (false, None) => Ok(None),
        (false, Some(_)) => Err(ConsoleError::NotWanted),
        (true, None) => Err(ConsoleError::NoSocket),
        (true, Some(socket)) => lend(socket).map(Some),
    }
}

/// A process in the foreground has its caller's terminal, and no other.
pub(super) fn none_in_foreground(socket: Option<&Path>) -> Result<(), ConsoleError> {
    socket.map_or(Ok(()), |_| Err(ConsoleError::NotWanted))
}

fn lend(path: &Path) -> Result<OwnedFd, ConsoleError> {
    let (master, slave) = pty().map_err(ConsoleError::Make)?;
    send(&master, path).map_err(|source| ConsoleError::Send {
        path: path.to_owned(),
        source,
    })?;
    Ok(slave)
}

fn pty() -> io::Result<(OwnedFd, OwnedFd)> {
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
    grantpt(&master)?;
    unlockpt(&master)?;
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let slave = ioctl_tiocgptpeer(&master, flags)?;
    let mut mode = tcgetattr(&slave)?;
    mode.make_raw();
    tcsetattr(&slave, OptionalActions::Now, &mode)?;
    Ok((master, slave))
}

fn send(master: &OwnedFd, path: &Path) -> io::Result<()> {
    let name = ptsname(master, Vec::new())?;
    let socket = UnixStream::connect(path)?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut rights = SendAncillaryBuffer::new(&mut space);
    let descriptors = [master.as_fd()];
    if !rights.push(SendAncillaryMessage::ScmRights(&descriptors)) {
        return Err(io::ErrorKind::OutOfMemory.into());
    }
    let data = [IoSlice::new(name.to_bytes())];
    sendmsg(&socket, &data, &mut rights, SendFlags::NOSIGNAL)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::{IoSliceMut, Read as _, Write as _};
    use std::os::unix::net::UnixListener;

    use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

    use super::*;

    #[test]
    fn engine_gets_the_master_of_a_raw_terminal() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("console");
        let listener = UnixListener::bind(&path).unwrap();
        let slave = of_background(true, Some(&path)).unwrap().unwrap();
        let (engine, _) = listener.accept().unwrap();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut rights = RecvAncillaryBuffer::new(&mut space);
        let mut name = [0; 64];
        let mut data = [IoSliceMut::new(&mut name)];
        let flags = RecvFlags::CMSG_CLOEXEC;
        let length = recvmsg(&engine, &mut data, &mut rights, flags)
            .unwrap()
            .bytes;
        assert!(name[..length].starts_with(b"/dev/pts/"));
        let Some(RecvAncillaryMessage::ScmRights(mut descriptors)) = rights.drain().next() else {
            panic!("no descriptor came");
        };
        let mut master = std::fs::File::from(descriptors.next().unwrap());
        std::fs::File::from(slave).write_all(b"a\n").unwrap();
        let mut seen = [0; 8];
        let length = master.read(&mut seen).unwrap();
        assert_eq!(&seen[..length], b"a\n");
    }

    #[test]
    fn terminal_and_socket_go_together() {
        assert!(matches!(of_background(false, None), Ok(None)));
        let unwanted = of_background(false, Some(Path::new("/s")));
        assert!(matches!(unwanted, Err(ConsoleError::NotWanted)));
        assert!(matches!(
            of_background(true, None),
            Err(ConsoleError::NoSocket)
        ));
    }
}
