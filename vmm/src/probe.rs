//! `husk-vmm --probe`: is this host's KVM there, permitted, and fit?
//!
//! A KVM that is there need not be fit: where the host is itself a guest without hardware support for a second level, KVM may emulate
//! guest kernels instruction by instruction, a hundred times too slow. So a tiny guest is run: one vCPU in 64-bit kernel mode, as any
//! Linux guest is, that counts a register down to zero and then writes to an I/O port.
//!
//! ```text
//!   guest memory   0x1000 PML4 ─► 0x2000 PDPT ─► 0x3000 PD: one 2 MiB page, 0 ─► 0      0x4000  dec rcx; jnz; out
//! ```
//!
//! The first run is short enough to end in good time on an emulating KVM; the best speed so far decides the length of the next. The best counts,
//! since others may use the processor at the same time.
//! Every way to fail is told in [`Probe`].

use std::fs::OpenOptions;
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use kvm_ioctls::{VcpuExit, VcpuFd};
use vm_memory::{Bytes as _, GuestAddress, GuestMemoryError};
use vmm_api::Probe;

use crate::causes;
use crate::kvm::{Kvm, KvmError, call};
use crate::memory::{self, Leaked, MemoryError};
use crate::vcpu::x86_64::enter_long_mode;

const GUEST_MEMORY_BYTES: u64 = 64 << 10;
const PML4: GuestAddress = GuestAddress(0x1000);
const PDPT: GuestAddress = GuestAddress(0x2000);
const PD: GuestAddress = GuestAddress(0x3000);
const CODE: GuestAddress = GuestAddress(0x4000);

/// `1: dec rcx; jnz 1b; out 0x80, al`
const LOOP: [u8; 7] = [0x48, 0xff, 0xc9, 0x75, 0xfb, 0xe6, 0x80];
const LOOP_INSTRUCTIONS: u64 = 2;

/// Takes 50 ms where KVM emulates 200 000 instructions a second.
const FIRST_ROUNDS: u64 = 5_000;
/// Later runs are made to take a 25th of a second, so that a guest's entry and exit do not count.
const RUNS_PER_SECOND: u64 = 25;
/// More than the fastest CPU does in that time, should the clock be wrong.
const ROUNDS_MAX: u64 = 1 << 28;
/// No run begins later than this after the first.
const LAST_START: Duration = Duration::from_millis(150);
/// No more runs than this, should the clock stand still.
const RUNS_MAX: u32 = 16;

/// Looks at `/dev/kvm`; what was found, as a line of JSON.
pub fn line() -> Result<String, serde_json::Error> {
    let mut found = Probe::default();
    if let Err(error) = look(&mut found) {
        found.error = Some(causes::line(&error));
    }
    Ok(serde_json::to_string(&found)? + "\n")
}

/// What stopped the probe.
#[derive(Debug, thiserror::Error)]
enum ProbeError {
    #[error("open /dev/kvm")]
    Open(#[source] io::Error),
    #[error(transparent)]
    Kvm(#[from] KvmError),
    #[error("make the memory of a guest")]
    Memory(#[from] MemoryError),
    #[error("fill the memory of a guest")]
    Fill(#[from] GuestMemoryError),
    #[error("the guest stopped with {0} before its end")]
    Exit(String),
}

fn look(found: &mut Probe) -> Result<(), ProbeError> {
    let device = Path::new("/dev/kvm");
    found.present = device.exists();
    if !found.present {
        return Ok(());
    }
    OpenOptions::new()
        .read(true)
        .write(true)
        .open(device)
        .map_err(ProbeError::Open)?;
    found.permitted = true;
    let kvm = Kvm::open(1)?;
    found.complete = true;
    found.instructions_per_second = Some(speed(&kvm)?);
    Ok(())
}

/// Instructions per second of a loop in guest kernel mode.
fn speed(kvm: &Kvm) -> Result<u64, ProbeError> {
    let vm = kvm.create_vm()?;
    vm.set_memory(&guest_memory()?, u64::MAX)?;
    let mut vcpu = vm.create_vcpu(0)?;
    vcpu.set_cpuid2(&kvm.supported_cpuid()?)
        .map_err(call("set the cpuid"))?;
    let mut special = vcpu.get_sregs().map_err(call("read the registers"))?;
    enter_long_mode(&mut special, PML4.0);
    vcpu.set_sregs(&special)
        .map_err(call("set the registers"))?;
    let begin = Instant::now();
    let mut best = 0;
    for _ in 0..RUNS_MAX {
        let rounds = (best / RUNS_PER_SECOND).clamp(FIRST_ROUNDS, ROUNDS_MAX);
        let time = run(&mut vcpu, rounds)?;
        best = best.max(rate(rounds, time));
        if begin.elapsed() > LAST_START {
            break;
        }
    }
    Ok(best * LOOP_INSTRUCTIONS)
}

/// Counts down from `rounds` in the guest; how long it took.
fn run(vcpu: &mut VcpuFd, rounds: u64) -> Result<Duration, ProbeError> {
    set_registers(vcpu, rounds)?;
    let start = Instant::now();
    match vcpu.run().map_err(call("run a vcpu"))? {
        VcpuExit::IoOut(..) => Ok(start.elapsed()),
        exit => Err(ProbeError::Exit(format!("{exit:?}"))),
    }
}

/// The page tables and the loop.
fn guest_memory() -> Result<Leaked, ProbeError> {
    const PRESENT_WRITABLE: u64 = 0b11;
    const LARGE: u64 = 1 << 7;
    let memory = memory::allocate(&[(0, GUEST_MEMORY_BYTES)], &(0..0))?;
    memory.write_obj(PDPT.0 | PRESENT_WRITABLE, PML4)?;
    memory.write_obj(PD.0 | PRESENT_WRITABLE, PDPT)?;
    memory.write_obj(PRESENT_WRITABLE | LARGE, PD)?;
    memory.write_slice(&LOOP, CODE)?;
    Ok(memory)
}

fn set_registers(vcpu: &VcpuFd, rounds: u64) -> Result<(), KvmError> {
    const RFLAGS_RESERVED: u64 = 1 << 1;
    let mut regs = vcpu.get_regs().map_err(call("read the registers"))?;
    (regs.rip, regs.rcx, regs.rflags) = (CODE.0, rounds, RFLAGS_RESERVED);
    vcpu.set_regs(&regs).map_err(call("set the registers"))
}

/// `count` per second, when it took `time`.
fn rate(count: u64, time: Duration) -> u64 {
    let nanoseconds = time.as_nanos().max(1);
    u64::try_from(u128::from(count) * 1_000_000_000 / nanoseconds).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rate_is_per_second() {
        assert_eq!(rate(40_000, Duration::from_millis(20)), 2_000_000);
        assert_eq!(rate(1, Duration::ZERO), 1_000_000_000);
    }

    #[test]
    fn loop_is_reached_through_the_page_tables() {
        let memory = guest_memory().unwrap();
        let entry = |at| memory.read_obj::<u64>(at).unwrap() & !0xfff;
        assert_eq!(entry(PML4), PDPT.0);
        assert_eq!(entry(PDPT), PD.0);
        assert_eq!(entry(PD), 0);
        assert_eq!(memory.read_obj::<u8>(CODE).unwrap(), LOOP[0]);
    }
}
