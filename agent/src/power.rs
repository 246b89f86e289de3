//! One byte to the machine's power port: PID 1 has begun, or switch off.
//!
//! The permission for the port is inherited by every process made later (`ioperm(2)`), so it is held for the one instruction only.
//!
//! Elsewhere than in a husk machine the port belongs to somebody else; only PID 1 of a guest calls this.

use agent_api::POWER_PORT;
use rustix::io::Errno;

use crate::syscall::checked;

/// Why the byte was not written, or who may write one now.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PowerError {
    #[error("cannot get access to the power port")]
    Grant(#[source] Errno),
    #[error("cannot give access to the power port back: containers would inherit it")]
    Revoke(#[source] Errno),
}

/// Writes `byte` to the port. Nobody has access to the port afterwards.
pub(crate) fn write(byte: u8) -> Result<(), PowerError> {
    permit(true).map_err(PowerError::Grant)?;
    // SAFETY: the port was granted above; the machine takes the byte and nothing in memory changes.
    unsafe {
        std::arch::asm!("out dx, al", in("dx") POWER_PORT, in("al") byte, options(nomem, nostack, preserves_flags));
    }
    permit(false).map_err(PowerError::Revoke)
}

/// Grants the port to this thread and what it will fork, or takes it away.
fn permit(granted: bool) -> Result<(), Errno> {
    // SAFETY: ioperm(2) changes what this thread may do, and touches no memory.
    checked(unsafe { libc::ioperm(POWER_PORT.into(), 1, i32::from(granted)) }).map(drop)
}
