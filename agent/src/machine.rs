//! What every guest must have of its own: clock, entropy, name.

use std::io;

use agent_api::agent::ConfigureRequest;
use rustix::io::Errno;
use rustix::time::{ClockId, Timespec, clock_settime};

use crate::entropy;

const NS_PER_S: i64 = 1_000_000_000;

/// Which of them could not be given.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MachineError {
    #[error("cannot set the clock")]
    Clock(#[source] Errno),
    #[error("cannot add entropy")]
    Entropy(#[source] io::Error),
    #[error("cannot set the hostname")]
    Hostname(#[source] Errno),
}

/// Gives the machine what the host has sent. What was not sent stays as it is.
pub(crate) fn configure(request: &ConfigureRequest) -> Result<(), MachineError> {
    // Entropy first: whatever asks for random bytes from now on is this machine's own.
    if !request.entropy.is_empty() {
        entropy::add(&request.entropy).map_err(MachineError::Entropy)?;
    }
    if request.realtime_ns > 0 {
        let now = Timespec {
            tv_sec: request.realtime_ns / NS_PER_S,
            tv_nsec: request.realtime_ns % NS_PER_S,
        };
        clock_settime(ClockId::Realtime, now).map_err(MachineError::Clock)?;
    }
    if !request.hostname.is_empty() {
        rustix::system::sethostname(request.hostname.as_bytes()).map_err(MachineError::Hostname)?;
    }
    Ok(())
}
