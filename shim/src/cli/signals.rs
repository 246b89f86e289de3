//! The signals a foreground command passes on to its container.
//!
//! All that can be caught, except: the kernel's word on our own faults (BUS, FPE, ILL, SEGV), our children (CHLD), what I/O causes in
//! ourselves (PIPE, URG), and job control of our own access to the terminal (TTIN, TTOU; caught, they would repeat for ever).

use std::io;
use std::os::raw::c_int;
use std::task::Poll;

use nix::libc;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Never passed on. KILL and STOP cannot be caught; 32 and 33 belong to the C library.
const KEPT: [c_int; 13] = [
    libc::SIGBUS,
    libc::SIGCHLD,
    libc::SIGFPE,
    libc::SIGILL,
    libc::SIGKILL,
    libc::SIGPIPE,
    libc::SIGSEGV,
    libc::SIGSTOP,
    libc::SIGTTIN,
    libc::SIGTTOU,
    libc::SIGURG,
    32,
    33,
];

/// The highest signal number of Linux.
pub(super) const SIGNAL_MAX: u8 = 64;

/// Asks to end: what ends a command whose container is not running yet.
const ENDING: [c_int; 4] = [libc::SIGHUP, libc::SIGINT, libc::SIGQUIT, libc::SIGTERM];

/// Catches every signal to pass on, from its making until this process ends.
#[derive(Debug)]
pub(super) struct Signals {
    streams: Vec<(c_int, Signal)>,
}

impl Signals {
    /// Begins to catch. Signals that come before they are asked for are kept, one of each.
    pub(super) fn catch() -> io::Result<Self> {
        let streams = (1..=c_int::from(SIGNAL_MAX))
            .filter(|number| !KEPT.contains(number))
            .map(|number| Ok((number, signal(SignalKind::from_raw(number))?)))
            .collect::<io::Result<_>>()?;
        Ok(Self { streams })
    }

    /// The next signal's number.
    pub(super) async fn next(&mut self) -> c_int {
        std::future::poll_fn(|context| {
            for (number, stream) in &mut self.streams {
                if stream.poll_recv(context).is_ready() {
                    return Poll::Ready(*number);
                }
            }
            Poll::Pending
        })
        .await
    }

    /// The next signal that asks to end; others are dropped.
    pub(super) async fn ending(&mut self) -> c_int {
        loop {
            let number = self.next().await;
            if ENDING.contains(&number) {
                return number;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use nix::sys::signal::{Signal as Name, raise};

    use super::*;

    #[tokio::test]
    async fn caught_signals_are_told_and_only_ending_ones_end() {
        let mut signals = Signals::catch().unwrap();
        raise(Name::SIGUSR1).unwrap();
        assert_eq!(signals.next().await, libc::SIGUSR1);
        raise(Name::SIGUSR2).unwrap();
        raise(Name::SIGTERM).unwrap();
        assert_eq!(signals.ending().await, libc::SIGTERM);
    }
}
