//! The only place where processes are waited for: children, and the orphans that PID 1 inherits.

use rustix::process::{WaitOptions, wait};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Exit {
    pub(crate) pid: i32,
    /// The exit code, or 128 + the signal that killed it.
    pub(crate) status: u32,
}

/// Tells when there may be something to reap.
#[derive(Debug)]
pub(crate) struct Reaper {
    children: Signal,
}

impl Reaper {
    pub(crate) fn new() -> std::io::Result<Self> {
        Ok(Self {
            children: signal(SignalKind::child())?,
        })
    }

    /// Waits until a process has ended since the last call.
    pub(crate) async fn ended(&mut self) {
        // The stream of signals has no end while this runtime lives.
        self.children.recv().await;
    }
}

/// One process that has ended and was not waited for yet.
pub(crate) fn next() -> Option<Exit> {
    let (pid, status) = wait(WaitOptions::NOHANG).ok()??;
    let signal = status
        .terminating_signal()
        .map(|signal| signal.saturating_add(128));
    let code = status.exit_status().or(signal)?;
    Some(Exit {
        pid: pid.as_raw_nonzero().get(),
        status: u32::try_from(code).unwrap_or(u32::MAX),
    })
}
