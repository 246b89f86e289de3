//! One byte to the machine's power port: PID 1 has begun, or switch off.
//!
//! Elsewhere than in a husk machine the port belongs to somebody else; only PID 1 of a guest calls this.

use agent_api::POWER_PORT;
use rustix::io::Errno;

use crate::syscall::checked;

/// Writes `byte` to the port.
pub(crate) fn write(byte: u8) -> Result<(), Errno> {
    // SAFETY: ioperm(2) changes what this thread may do, and touches no memory.
    checked(unsafe { libc::ioperm(POWER_PORT.into(), 1, 1) })?;
    // SAFETY: the port was granted above; the machine takes the byte and nothing in memory changes.
    unsafe {
        std::arch::asm!("out dx, al", in("dx") POWER_PORT, in("al") byte, options(nomem, nostack, preserves_flags));
    }
    Ok(())
}
