//! What an x86-64 vCPU is before its first instruction: CPUID, registers, local APIC.
//!
//! The processor a guest sees is the host's less what a guest of ours has no use for, with the ids of the vCPU; one core per vCPU, one package.

use kvm_bindings::{CpuId, kvm_cpuid_entry2, kvm_msr_entry, kvm_regs, kvm_segment, kvm_sregs};
use kvm_ioctls::VcpuFd;

use crate::boot::tables::{CODE_SELECTOR, DATA_SELECTOR};
use crate::kvm::{self, KvmError, call};
use crate::layout::{BOOT_STACK, GDT, PAGE_TABLES, ZERO_PAGE};

/// Gives a vCPU its view of the processor. Must come before anything else is set.
pub fn set_processor(vcpu: &VcpuFd, cpuid: &CpuId) -> Result<(), KvmError> {
    vcpu.set_cpuid2(cpuid).map_err(call("set the cpuid"))?;
    vcpu.set_msrs(&kvm::msrs(&INITIAL_MSRS)?)
        .map_err(call("set the model-specific registers"))?;
    set_extended_state(vcpu, cpuid)?;
    set_local_apic(vcpu)
}

/// Sets the registers of the boot processor as the 64-bit boot protocol wants them. The others wait for the kernel's start-up interrupt.
pub fn set_entry(vcpu: &VcpuFd, entry: u64) -> Result<(), KvmError> {
    let mut special = vcpu
        .get_sregs()
        .map_err(call("read the special registers"))?;
    enter_long_mode(&mut special, PAGE_TABLES);
    special.gdt.base = GDT;
    special.gdt.limit = 31;
    special.idt.limit = 0;
    vcpu.set_sregs(&special)
        .map_err(call("set the special registers"))?;
    const ALWAYS_SET: u64 = 1 << 1;
    let registers = kvm_regs {
        rflags: ALWAYS_SET,
        rip: entry,
        rsp: BOOT_STACK,
        rbp: BOOT_STACK,
        rsi: ZERO_PAGE,
        ..kvm_regs::default()
    };
    vcpu.set_regs(&registers).map_err(call("set the registers"))
}

/// 64-bit kernel mode, with these page tables and segments of all there is.
pub(crate) fn enter_long_mode(special: &mut kvm_sregs, page_tables: u64) {
    const PROTECTED: u64 = 1 << 0;
    const PAGING: u64 = 1 << 31;
    const PHYSICAL_ADDRESS_EXTENSION: u64 = 1 << 5;
    const LONG_MODE_ENABLE: u64 = 1 << 8;
    const LONG_MODE_ACTIVE: u64 = 1 << 10;

    let data = kvm_segment {
        limit: u32::MAX,
        selector: DATA_SELECTOR,
        type_: 3, // read, write, accessed
        present: 1,
        db: 1,
        s: 1,
        g: 1,
        ..kvm_segment::default()
    };
    special.cs = kvm_segment {
        selector: CODE_SELECTOR,
        type_: 11, // execute, read, accessed
        db: 0,
        l: 1,
        ..data
    };
    special.ds = data;
    special.es = data;
    special.fs = data;
    special.gs = data;
    special.ss = data;
    special.cr3 = page_tables;
    special.cr4 |= PHYSICAL_ADDRESS_EXTENSION;
    special.cr0 |= PROTECTED | PAGING;
    special.efer |= LONG_MODE_ENABLE | LONG_MODE_ACTIVE;
}

/// What firmware would have set: `rep movs` is fast.
const INITIAL_MSRS: [kvm_msr_entry; 1] = [kvm_msr_entry {
    index: 0x1a0, // IA32_MISC_ENABLE
    reserved: 0,
    data: 1,
}];

/// Turns on all extended state the guest has. Kernels do so themselves; but a host that is emulated need not notice, and would keep it off.
fn set_extended_state(vcpu: &VcpuFd, cpuid: &CpuId) -> Result<(), KvmError> {
    let Some(leaf) = cpuid
        .as_slice()
        .iter()
        .find(|entry| entry.function == 0xd && entry.index == 0)
    else {
        return Ok(());
    };
    let mut registers = vcpu
        .get_xcrs()
        .map_err(call("read the extended control registers"))?;
    registers.nr_xcrs = 1;
    registers.xcrs[0].xcr = 0;
    registers.xcrs[0].value = u64::from(leaf.edx) << 32 | u64::from(leaf.eax);
    vcpu.set_xcrs(&registers)
        .map_err(call("set the extended control registers"))
}

/// The local interrupt pins as firmware leaves them, and as the MP table tells: LINT0 for the PC's interrupt controller, LINT1 for NMI.
fn set_local_apic(vcpu: &VcpuFd) -> Result<(), KvmError> {
    const LINT0: usize = 0x350;
    const LINT1: usize = 0x360;
    const MODE: usize = 1; // the second byte of the register, its bits 0 to 2
    const EXTERNAL: std::ffi::c_char = 7;
    const NMI: std::ffi::c_char = 4;
    let mut apic = vcpu.get_lapic().map_err(call("read the local apic"))?;
    apic.regs[LINT0 + MODE] = EXTERNAL;
    apic.regs[LINT1 + MODE] = NMI;
    vcpu.set_lapic(&apic).map_err(call("set the local apic"))
}

/// What all vCPUs of a machine have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Processor {
    /// How many vCPUs there are, parked ones too.
    pub vcpus: u8,
    /// Whether the APIC timer has the deadline mode.
    pub tsc_deadline: bool,
}

impl Processor {
    /// What KVM `supported`, less what a guest must not see, as vCPU `id` sees it (pure).
    #[must_use]
    pub fn cpuid(self, supported: &[kvm_cpuid_entry2], id: u8) -> Vec<kvm_cpuid_entry2> {
        let mut entries: Vec<kvm_cpuid_entry2> = supported
            .iter()
            .filter(|entry| !matches!(entry.function, TOPOLOGY | TOPOLOGY_V2 | AMD_TOPOLOGY_V2))
            .copied()
            .collect();
        for entry in &mut entries {
            self.adjust(entry, id);
        }
        entries.extend(self.topology(id));
        entries
    }

    fn adjust(self, entry: &mut kvm_cpuid_entry2, id: u8) {
        const VMX: u32 = 1 << 5;
        const TSC_DEADLINE: u32 = 1 << 24;
        const HYPERVISOR: u32 = 1 << 31;
        const MTRR: u32 = 1 << 12;
        const SEVERAL_CORES: u32 = 1 << 28;
        const SVM: u32 = 1 << 2;
        const AMD_COUNTERS: u32 = 1 << 23 | 1 << 24 | 1 << 28;
        const ALWAYS_RUNNING_APIC_TIMER: u32 = 1 << 2;
        let id_32 = u32::from(id);
        match entry.function {
            0x1 => {
                entry.ebx &= 0x0000_ffff;
                entry.ebx |= id_32 << 24 | u32::from(self.vcpus) << 16;
                // No machines within the machine.
                entry.ecx &= !VMX;
                entry.ecx |= HYPERVISOR;
                // Memory types come from page tables alone; reading a hundred registers of ranges costs as many exits.
                entry.edx &= !(MTRR | SEVERAL_CORES);
                if self.vcpus > 1 {
                    entry.edx |= SEVERAL_CORES;
                }
                if self.tsc_deadline {
                    // No calibration against a timer there is none of.
                    entry.ecx |= TSC_DEADLINE;
                }
            }
            // Caches: each core has its own, the last level is shared by all.
            0x4 | 0x8000_001d => self.share_caches(entry),
            0x6 => entry.eax |= ALWAYS_RUNNING_APIC_TIMER,
            // No performance counters: probing them costs exits, and KVM's cost more.
            0xa | 0x8000_0022 => (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0),
            0x8000_0001 => entry.ecx &= !(SVM | AMD_COUNTERS),
            // Number of cores less one.
            0x8000_0008 => entry.ecx = (u32::from(self.vcpus) - 1) | (self.id_bits() << 12),
            // One thread per core, one node.
            0x8000_001e => (entry.eax, entry.ebx, entry.ecx) = (id_32, id_32 & 0xff, 0),
            _ => {}
        }
    }

    fn share_caches(self, entry: &mut kvm_cpuid_entry2) {
        let level = entry.eax >> 5 & 0b111;
        let sharing = if level == 3 { u32::from(self.vcpus) } else { 1 };
        entry.eax &= 0x0000_3fff;
        entry.eax |= (sharing - 1) << 14;
        if entry.function == 0x4 {
            entry.eax |= ((1 << self.id_bits()) - 1) << 26;
        }
    }

    /// One thread per core, `vcpus` cores.
    fn topology(self, id: u8) -> [kvm_cpuid_entry2; 3] {
        const SIGNIFICANT_INDEX: u32 = 1;
        const THREAD: u32 = 1 << 8;
        const CORE: u32 = 2 << 8;
        [
            (0, 1, THREAD),
            (self.id_bits(), u32::from(self.vcpus), CORE | 1),
            (0, 0, 2),
        ]
        .map(|(eax, ebx, ecx)| kvm_cpuid_entry2 {
            function: TOPOLOGY,
            index: ecx & 0xff,
            flags: SIGNIFICANT_INDEX,
            eax,
            ebx,
            ecx,
            edx: u32::from(id),
            ..kvm_cpuid_entry2::default()
        })
    }

    /// How many bits of an APIC id number the core.
    fn id_bits(self) -> u32 {
        u32::from(self.vcpus).next_power_of_two().trailing_zeros()
    }
}

const TOPOLOGY: u32 = 0xb;
const TOPOLOGY_V2: u32 = 0x1f;
const AMD_TOPOLOGY_V2: u32 = 0x8000_0026;

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(function: u32) -> kvm_cpuid_entry2 {
        kvm_cpuid_entry2 {
            function,
            eax: u32::MAX,
            ebx: u32::MAX,
            ecx: u32::MAX,
            edx: u32::MAX,
            ..kvm_cpuid_entry2::default()
        }
    }

    fn of(function: u32, vcpus: u8, id: u8) -> Vec<kvm_cpuid_entry2> {
        Processor {
            vcpus,
            tsc_deadline: true,
        }
        .cpuid(&[entry(function)], id)
        .into_iter()
        .filter(|entry| entry.function == function)
        .collect()
    }

    #[test]
    fn ids_differ_by_vcpu() {
        assert_eq!(of(0x1, 4, 3)[0].ebx >> 16, 3 << 8 | 4);
        let levels = of(0xb, 4, 3);
        assert_eq!(levels.len(), 3);
        assert!(levels.iter().all(|level| level.edx == 3));
        assert_eq!((levels[1].eax, levels[1].ebx, levels[1].ecx), (2, 4, 0x201));
    }

    #[test]
    fn odd_number_of_vcpus_gets_enough_id_bits() {
        for (vcpus, bits) in [(1, 0), (2, 1), (3, 2), (64, 6)] {
            assert_eq!(of(0xb, vcpus, 0)[1].eax, bits);
        }
    }

    #[test]
    fn guests_cannot_nest_and_have_no_counters() {
        assert_eq!(of(0x1, 1, 0)[0].ecx & 1 << 5, 0);
        assert_eq!(of(0x8000_0001, 1, 0)[0].ecx & 1 << 2, 0);
        assert_eq!(of(0xa, 1, 0)[0].eax, 0);
    }

    #[test]
    fn kvm_leaves_are_kept() {
        assert_eq!(of(0x4000_0001, 1, 0)[0].eax, u32::MAX);
    }
}
