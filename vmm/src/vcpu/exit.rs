//! Why a vCPU came back from `KVM_RUN`, and what to do about it.

use std::thread;
use std::time::Duration;

use kvm_bindings::KVM_EXIT_X86_BUS_LOCK;
use kvm_ioctls::VcpuExit;
use vmm_api::StopReason;

use crate::bus::Bus;
use crate::power::Order;
use crate::timeline::Timeline;

/// How long a vCPU rests that has locked the memory bus, which slows every processor of the host
/// down. Programs that do it by mistake still run, and those that do it in a loop harm nobody.
const BUS_LOCK_PAUSE: Duration = Duration::from_millis(1);

/// Why a vCPU cannot go on. Not something a guest of ours does by accident.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ExitError {
    /// The processor refused the state it was given.
    #[error("the processor refused to enter the guest (reason {reason:#x})")]
    Entry {
        /// The processor's reason.
        reason: u64,
    },
    /// KVM met an instruction it cannot emulate, or memory that is none.
    #[error("kvm could not emulate an instruction of the guest")]
    Emulation,
    /// An exit no machine of this kind has.
    #[error("unexpected exit {name}")]
    Unexpected {
        /// KVM's name for it.
        name: String,
    },
}

/// Does what the exit asks for. Some when the guest ended its machine by it.
pub fn handle(
    exit: VcpuExit<'_>,
    bus: &Bus,
    timeline: &Timeline,
) -> Result<Option<StopReason>, ExitError> {
    match exit {
        VcpuExit::MmioRead(address, data) => bus.read_memory(address, data),
        VcpuExit::MmioWrite(address, data) => bus.write_memory(address, data),
        VcpuExit::IoIn(port, data) => bus.read_port(port, data),
        VcpuExit::IoOut(port, data) => match bus.write_port(port, data) {
            Some(Order::PowerOff) => return Ok(Some(StopReason::PoweredOff)),
            Some(Order::Reset) => return Ok(Some(StopReason::Reset)),
            Some(Order::Mark(name)) => timeline.mark(&name),
            None => {}
        },
        // A triple fault is a reset; so is what KVM reports as an event of the system.
        VcpuExit::Shutdown | VcpuExit::SystemEvent(..) => return Ok(Some(StopReason::Reset)),
        VcpuExit::Intr => {}
        VcpuExit::Unsupported(KVM_EXIT_X86_BUS_LOCK) => rest(),
        VcpuExit::FailEntry(reason, _) => return Err(ExitError::Entry { reason }),
        VcpuExit::InternalError => return Err(ExitError::Emulation),
        other => {
            return Err(ExitError::Unexpected {
                name: format!("{other:?}"),
            });
        }
    }
    Ok(None)
}

#[expect(clippy::disallowed_methods, reason = "time is what is waited for")]
fn rest() {
    thread::sleep(BUS_LOCK_PAUSE);
}
