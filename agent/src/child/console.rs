//! The terminal of a process: a pair out of the container's own `/dev/pts`. The slave is the process's stdio, the master goes to the
//! agent.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Gid, Mode, OFlags, Uid, fchown, fstatfs, open as open_file};
use rustix::io::Errno;
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, unlockpt};
use rustix::termios::{OptionalActions, OutputModes, Winsize, tcgetattr, tcsetattr, tcsetwinsize};

use super::mounts::{attach as attach_mount, clone_of};
use super::root::Root;
use super::{Doing, StepError};
use crate::plan::Process;
use crate::report::{self, Report};

/// Makes the pair, of the size and owner that the process asks for, and sends the master to the agent.
pub(super) fn open(process: &Process, status: BorrowedFd<'_>) -> Result<OwnedFd, StepError> {
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let master = open_file("/dev/pts/ptmx", flags, Mode::empty())
        .and_then(check_devpts)
        .doing(|| "cannot open /dev/pts/ptmx".to_owned())?;
    unlockpt(&master).doing(|| "cannot unlock the terminal".to_owned())?;
    let peer = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let slave = ioctl_tiocgptpeer(&master, peer).doing(|| "cannot open the terminal".to_owned())?;
    let size = Winsize {
        ws_row: process.size.height,
        ws_col: process.size.width,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    tcsetwinsize(&master, size).doing(|| "cannot size the terminal".to_owned())?;
    if process.keep_newlines {
        keep_newlines(&master).doing(|| "cannot set the terminal's mode".to_owned())?;
    }
    // The group stays what the mount of /dev/pts says.
    fchown(&slave, Some(Uid::from_raw(process.uid)), None::<Gid>)
        .doing(|| "cannot own the terminal".to_owned())?;
    report::send(status, &Report::Terminal, Some(master.as_fd()))
        .doing(|| "cannot send the terminal".to_owned())?;
    Ok(slave)
}

/// The terminal of this master passes line ends on as they are.
pub(crate) fn keep_newlines(master: &OwnedFd) -> Result<(), Errno> {
    let mut mode = tcgetattr(master)?;
    mode.output_modes.remove(OutputModes::ONLCR);
    tcsetattr(master, OptionalActions::Now, &mode)
}

/// A container can put another file there, which would be no terminal of its own.
fn check_devpts(master: OwnedFd) -> Result<OwnedFd, Errno> {
    const DEVPTS_SUPER_MAGIC: u64 = 0x1cd1;
    let kind = u64::try_from(fstatfs(&master)?.f_type);
    match kind {
        Ok(DEVPTS_SUPER_MAGIC) => Ok(master),
        _ => Err(Errno::NOTTY),
    }
}

/// Puts the terminal at `/dev/console` too.
pub(super) fn bind(root: &Root, slave: &OwnedFd) -> Result<(), StepError> {
    let doing = || "cannot put the terminal at /dev/console".to_owned();
    let place = root.file(Path::new("/dev/console")).doing(doing)?;
    let tree = clone_of(slave, false).doing(doing)?;
    attach_mount(tree, place).doing(doing)
}

/// Makes it the controlling terminal and the stdio of this session leader.
pub(super) fn attach(slave: &OwnedFd) -> Result<(), StepError> {
    let doing = || "cannot take the terminal".to_owned();
    rustix::process::ioctl_tiocsctty(slave).doing(doing)?;
    rustix::stdio::dup2_stdin(slave).doing(doing)?;
    rustix::stdio::dup2_stdout(slave).doing(doing)?;
    rustix::stdio::dup2_stderr(slave).doing(doing)
}
