//! kill(2) for every signal number, real-time ones included, which the typed wrappers leave out.

use rustix::io::Errno;

use crate::syscall::checked;

/// Ends any process but the first.
pub(crate) const KILL: u32 = 9;

/// The kernel's signals are 1 to this.
const SIGNAL_MAX: i32 = 64;

/// Sends a signal to one process.
pub(crate) fn send(pid: i32, signal: u32) -> Result<(), Errno> {
    let signal = i32::try_from(signal).map_err(|_| Errno::INVAL)?;
    // 0 and negative ids name groups, or everything.
    if pid <= 0 || !(0..=SIGNAL_MAX).contains(&signal) {
        return Err(Errno::INVAL);
    }
    // SAFETY: kill(2) takes two numbers and touches no memory of this process.
    checked(unsafe { libc::kill(pid, signal) }).map(drop)
}

/// Gives SIGPIPE its default meaning back, which the Rust runtime takes away at its start and `execve` would pass on.
pub(crate) fn default_sigpipe() {
    // SAFETY: no handler is installed or replaced by one; SIG_DFL is always valid for SIGPIPE.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
}
