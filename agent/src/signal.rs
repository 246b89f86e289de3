//! Signals of every number, real-time ones included, which the typed wrappers leave out: kill(2), and what a new program begins with.

use std::os::unix::process::CommandExt;
use std::process::Command;

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

/// Gives every signal its default meaning and lets it through, as a program expects to begin: `execve` passes on what is ignored and blocked.
///
/// The Rust runtime ignores SIGPIPE, and glibc's `posix_spawn` ignores the two signals that its threads use, which its own functions for signals
/// then refuse to change.
pub(crate) fn default_all() -> Result<(), Errno> {
    // The kernel's `struct sigaction` on x86-64: handler, flags, restorer, mask.
    let default = [0_u64; 4];
    let nothing_blocked = 0_u64;
    for signal in 1..=SIGNAL_MAX {
        // Nobody changes what these two do.
        if signal == libc::SIGKILL || signal == libc::SIGSTOP {
            continue;
        }
        // SAFETY: the kernel reads 32 bytes, which say SIG_DFL: no handler is installed.
        checked(unsafe {
            libc::syscall(
                libc::SYS_rt_sigaction,
                signal,
                &raw const default,
                std::ptr::null_mut::<u64>(),
                size_of::<u64>(),
            )
        })?;
    }
    // SAFETY: the kernel reads a signal set of 8 bytes.
    checked(unsafe {
        libc::syscall(
            libc::SYS_rt_sigprocmask,
            libc::SIG_SETMASK,
            &raw const nothing_blocked,
            std::ptr::null_mut::<u64>(),
            size_of::<u64>(),
        )
    })
    .map(drop)
}

/// Lets a command begin so, too.
pub(crate) fn default_all_in(command: &mut Command) -> &mut Command {
    // SAFETY: what runs in the copy of this process before its program makes system calls only, and allocates nothing.
    unsafe { command.pre_exec(|| Ok(default_all()?)) }
}
