//! The safe face of the KVM calls we use: open with checks, a VM with its interrupt controller, memory slots, eventfds, exit counters.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, FromRawFd, IntoRawFd};

use kvm_bindings::{
    CpuId, KVM_API_VERSION, KVM_BUS_LOCK_DETECTION_EXIT, KVM_CAP_PMU_CAPABILITY,
    KVM_CAP_X86_BUS_LOCK_EXIT, KVM_MAX_CPUID_ENTRIES, KVM_PMU_CAP_DISABLE, Msrs, kvm_cpuid_entry2,
    kvm_enable_cap, kvm_msr_entry, kvm_userspace_memory_region,
};
use kvm_ioctls::{Cap, IoEventAddress, VcpuFd, VmFd};
use vmm_sys_util::errno;
use vmm_sys_util::eventfd::EventFd;
use vmm_virtio::{Event, mmio};

use crate::layout::{IDENTITY_MAP, Slot, TSS};
use crate::memory::{self, Leaked};

/// What a machine cannot do without, and its name for people.
const REQUIRED: &[(Cap, &str)] = &[
    (Cap::UserMemory, "user memory"),
    (Cap::Irqchip, "an in-kernel interrupt controller"),
    (Cap::Irqfd, "irqfd"),
    (Cap::Ioeventfd, "ioeventfd"),
    (Cap::SetTssAddr, "the TSS address"),
    (Cap::SetIdentityMapAddr, "the identity map address"),
    (Cap::ExtCpuid, "extended CPUID"),
    (Cap::ImmediateExit, "immediate exit"),
    (Cap::MpState, "multiprocessor state"),
    (Cap::AdjustClock, "an adjustable clock"),
];

/// What is taken from guests where KVM and the processor can: performance counters, by which one
/// guest listens to others, and locks of the whole memory bus without the VMM's knowing
/// ([`crate::vcpu`] slows them down). Capability, mode, what that is for people.
const RESTRICTIONS: &[(u32, u32, &str)] = &[
    (
        KVM_CAP_PMU_CAPABILITY,
        KVM_PMU_CAP_DISABLE,
        "take performance counters away",
    ),
    (
        KVM_CAP_X86_BUS_LOCK_EXIT,
        KVM_BUS_LOCK_DETECTION_EXIT,
        "watch for bus locks",
    ),
];

/// Why KVM did not do what it should.
#[derive(Debug, thiserror::Error)]
pub enum KvmError {
    /// No device, or no right to it.
    #[error("open /dev/kvm")]
    Open(#[source] errno::Error),
    /// Another KVM than the one of the last fifteen years.
    #[error("kvm has api version {found}, not {KVM_API_VERSION}")]
    Version {
        /// Its version.
        found: i32,
    },
    /// A capability is missing.
    #[error("kvm on this host lacks {name}")]
    Missing {
        /// Its name.
        name: &'static str,
    },
    /// More vCPUs than KVM makes.
    #[error("kvm on this host makes at most {max} vCPUs")]
    TooManyVcpus {
        /// Its limit.
        max: usize,
    },
    /// A call failed.
    #[error("{what}")]
    Call {
        /// What it was to do.
        what: &'static str,
        /// KVM's reason.
        #[source]
        source: errno::Error,
    },
    /// A list is longer than KVM takes.
    #[error("too many entries for kvm")]
    TooManyEntries,
    /// A range of guest addresses is not memory.
    #[error("guest address {address:#x} is not in memory")]
    Outside {
        /// Where it begins.
        address: u64,
    },
    /// A descriptor could not be duplicated.
    #[error("duplicate an eventfd")]
    Duplicate(#[source] io::Error),
}

/// An error of the call that was to do `what`.
pub(crate) fn call(what: &'static str) -> impl FnOnce(errno::Error) -> KvmError {
    move |source| KvmError::Call { what, source }
}

/// KVM, opened and checked.
#[derive(Debug)]
pub struct Kvm {
    kvm: kvm_ioctls::Kvm,
}

impl Kvm {
    /// Opens `/dev/kvm` and checks that it can run machines of `vcpus` vCPUs.
    pub fn open(vcpus: u8) -> Result<Self, KvmError> {
        let kvm = kvm_ioctls::Kvm::new().map_err(KvmError::Open)?;
        let found = kvm.get_api_version();
        if u32::try_from(found) != Ok(KVM_API_VERSION) {
            return Err(KvmError::Version { found });
        }
        for (capability, name) in REQUIRED {
            if !kvm.check_extension(*capability) {
                return Err(KvmError::Missing { name });
            }
        }
        let max = kvm.get_max_vcpus();
        if usize::from(vcpus) > max {
            return Err(KvmError::TooManyVcpus { max });
        }
        Ok(Self { kvm })
    }

    /// What this processor and KVM can offer a guest.
    pub fn supported_cpuid(&self) -> Result<CpuId, KvmError> {
        self.kvm
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(call("read the supported cpuid"))
    }

    /// Whether the APIC timer has the deadline mode, which needs no calibration.
    #[must_use]
    pub fn has_tsc_deadline(&self) -> bool {
        self.kvm.check_extension(Cap::TscDeadlineTimer)
    }

    /// A VM with an interrupt controller and without memory and processors.
    pub fn create_vm(&self) -> Result<Vm, KvmError> {
        let vm = self.kvm.create_vm().map_err(call("create a vm"))?;
        vm.set_identity_map_address(IDENTITY_MAP)
            .map_err(call("set the identity map address"))?;
        vm.set_tss_address(TSS)
            .map_err(call("set the tss address"))?;
        vm.create_irq_chip()
            .map_err(call("create the interrupt controller"))?;
        let vm = Vm { vm };
        for (capability, mode, what) in RESTRICTIONS {
            vm.restrict(*capability, *mode).map_err(call(what))?;
        }
        Ok(vm)
    }
}

/// A list of CPUID entries in the form KVM takes.
pub fn cpuid(entries: &[kvm_cpuid_entry2]) -> Result<CpuId, KvmError> {
    CpuId::from_entries(entries).map_err(|_| KvmError::TooManyEntries)
}

/// A list of model-specific registers in the form KVM takes.
pub fn msrs(entries: &[kvm_msr_entry]) -> Result<Msrs, KvmError> {
    Msrs::from_entries(entries).map_err(|_| KvmError::TooManyEntries)
}

/// One virtual machine.
#[derive(Debug)]
pub struct Vm {
    vm: VmFd,
}

impl Vm {
    /// Gives the VM its memory below the guest address `end`, one slot per mapping; returns how many slots that took.
    pub fn set_memory(&self, memory: &Leaked, end: u64) -> Result<u32, KvmError> {
        let mut slots = 0;
        for mapping in memory::mappings(memory) {
            if mapping.0 < end {
                self.set_slot(slots, mapping)?;
                slots += 1;
            }
        }
        Ok(slots)
    }

    /// Gives the VM one range of guest addresses more, as slot number `slot`.
    pub fn add_memory(
        &self,
        slot: u32,
        memory: &Leaked,
        range: &Range<u64>,
    ) -> Result<(), KvmError> {
        let outside = || KvmError::Outside {
            address: range.start,
        };
        let mapping = memory::mappings(memory)
            .into_iter()
            .find(|(guest, _, length)| {
                *guest <= range.start && range.end <= guest.saturating_add(*length)
            });
        let (guest, host, _) = mapping.ok_or_else(outside)?;
        let part = (
            range.start,
            host + (range.start - guest),
            range.end - range.start,
        );
        self.set_slot(slot, part)
    }

    /// Turns a mode of a capability on, if there is that mode. To be called before there are vCPUs.
    fn restrict(&self, capability: u32, mode: u32) -> Result<(), errno::Error> {
        let modes = self.vm.check_extension_raw(capability.into());
        if !u32::try_from(modes).is_ok_and(|modes| modes & mode != 0) {
            return Ok(());
        }
        self.vm.enable_cap(&kvm_enable_cap {
            cap: capability,
            args: [mode.into(), 0, 0, 0],
            ..kvm_enable_cap::default()
        })
    }

    /// A part of a mapping of [`Leaked`] memory: guest address, host address, length.
    fn set_slot(&self, slot: u32, part: (u64, u64, u64)) -> Result<(), KvmError> {
        let (guest_phys_addr, userspace_addr, memory_size) = part;
        let region = kvm_userspace_memory_region {
            slot,
            flags: 0,
            guest_phys_addr,
            memory_size,
            userspace_addr,
        };
        // SAFETY: both callers have the part from `Leaked` memory: it is as long as it says, lives
        // as long as the process, and is only accessed as guest memory.
        unsafe { self.vm.set_user_memory_region(region) }.map_err(call("give the vm memory"))
    }

    /// Creates vCPU number `id`.
    pub fn create_vcpu(&self, id: u8) -> Result<VcpuFd, KvmError> {
        self.vm
            .create_vcpu(u64::from(id))
            .map_err(call("create a vcpu"))
    }

    /// Raises the slot's interrupt whenever `line` is signalled.
    pub fn connect_interrupt(&self, slot: Slot, line: &Event) -> Result<(), KvmError> {
        self.vm
            .register_irqfd(&duplicate(line)?, slot.irq())
            .map_err(call("connect an interrupt"))
    }

    /// Signals `kick` whenever the guest writes `queue` to the slot's `QueueNotify`.
    pub fn connect_kick(&self, slot: Slot, queue: u32, kick: &Event) -> Result<(), KvmError> {
        let address = IoEventAddress::Mmio(slot.address() + mmio::QUEUE_NOTIFY);
        self.vm
            .register_ioevent(&duplicate(kick)?, &address, queue)
            .map_err(call("connect a queue's kick"))
    }
}

/// KVM keeps its own reference to the event behind the descriptor, so the duplicate may be closed after the call.
fn duplicate(event: &Event) -> Result<EventFd, KvmError> {
    let fd = event
        .as_fd()
        .try_clone_to_owned()
        .map_err(KvmError::Duplicate)?;
    // SAFETY: the descriptor was just made and has no other owner.
    Ok(unsafe { EventFd::from_raw_fd(fd.into_raw_fd()) })
}

vmm_sys_util::ioctl_io_nr!(KVM_GET_STATS_FD, kvm_bindings::KVMIO, 0xce);

/// A vCPU's binary statistics ([`crate::statistics`]). None where KVM has none.
#[must_use]
pub fn statistics_of(vcpu: &VcpuFd) -> Option<File> {
    // SAFETY: the call takes no argument and returns a new descriptor or an error.
    let fd = unsafe { vmm_sys_util::ioctl::ioctl(vcpu, KVM_GET_STATS_FD()) };
    if fd < 0 {
        return None;
    }
    // SAFETY: the descriptor was just made and has no other owner.
    Some(unsafe { File::from_raw_fd(fd) })
}
