//! A machine: built by a straight line of steps, then running or paused until it ends.
//!
//! ```text
//!   Plan, Host ── build ──► paused ◄── pause ── resume ──► running ──► ended (see `ending`)
//! ```
//!
//! Only the control thread holds a `Machine`, and is never held up by it: a pause is begun, and
//! goes on when [`Machine::progress`] says so. It stops vCPUs first, so that nothing kicks a device
//! that is stopping; resume is the reverse. A paused machine is plain state: registers KVM can be
//! asked for, queue positions, guest memory.

use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use kvm_ioctls::VcpuFd;
use vmm_api::Stats;
use vmm_virtio::{Confine, Event, GuestMemory, mem, vsock};

use crate::boot;
use crate::boot::kernel::{self, KernelError};
use crate::bus::Bus;
use crate::config::Plan;
use crate::devices::{Devices, DevicesError, Parts, ResizeError};
use crate::ending::Ending;
use crate::host::Host;
use crate::kvm::{self, Kvm, KvmError, Vm};
use crate::layout::ram;
use crate::log::Log;
use crate::memory::{self, Leaked, MemoryError};
use crate::seccomp;
use crate::statistics::ExitCounter;
use crate::timeline::Timeline;
use crate::vcpu::x86_64::{self, Processor};
use crate::vcpu::{Surroundings, Vcpu, kick};

/// Why a machine could not be built.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// KVM.
    #[error("kvm")]
    Kvm(#[source] KvmError),
    /// Guest memory.
    #[error("guest memory")]
    Memory(#[source] MemoryError),
    /// The kernel.
    #[error("load the kernel")]
    Kernel(#[source] KernelError),
    /// The initrd.
    #[error("load the initrd")]
    Initrd(#[source] KernelError),
    /// Devices.
    #[error("devices")]
    Devices(#[source] DevicesError),
    /// An eventfd.
    #[error("make an event")]
    Event(#[source] io::Error),
    /// The handler of the signal that interrupts vCPUs.
    #[error("install the signal handler")]
    Signal(#[source] vmm_sys_util::errno::Error),
    /// A thread.
    #[error("start a vcpu thread")]
    Thread(#[source] io::Error),
}

/// A machine.
#[derive(Debug)]
pub struct Machine {
    vcpus: Vec<Vcpu>,
    devices: Devices,
    confine: Confine,
    timeline: Arc<Timeline>,
    ending: Arc<Ending>,
    state: State,
    /// Signalled when a vCPU rests, and when the devices have stopped.
    progress: Arc<Event>,
    bus: Arc<Bus>,
    /// At boot.
    memory_bytes: u64,
    region: Region,
    vm: Vm,
}

/// How far the machine is on its way between running and paused.
#[derive(Clone, Debug)]
enum State {
    Running,
    /// vCPUs were told to pause.
    VcpusStop,
    /// They have paused, and devices were told to stop.
    DevicesStop {
        stopped: Arc<AtomicBool>,
    },
    Paused,
}

/// Guest addresses of memory that comes and goes. KVM keeps tables for each page of a memory slot, so no more of them is one than was asked for.
#[derive(Debug)]
struct Region {
    addresses: Range<u64>,
    /// Bytes, from the first address on, that are memory slots.
    usable: u64,
    next_slot: u32,
    memory: Leaked,
}

/// More than is asked for is usable, two of Linux's usual memory blocks, so that a driver that has one in use in part can go on in the next.
const USABLE_BEYOND_BYTES: u64 = 256 << 20;

impl Machine {
    /// Builds the machine, paused before its first instruction.
    pub fn build(
        plan: &Plan,
        host: Host,
        log: Log,
        timeline: Arc<Timeline>,
    ) -> Result<Self, MachineError> {
        let vm = host.kvm.create_vm().map_err(MachineError::Kvm)?;
        let memory = memory::allocate(&ram(plan.memory_bytes), &plan.region)
            .map_err(MachineError::Memory)?;
        let region = Region {
            addresses: plan.region.clone(),
            usable: 0,
            next_slot: vm
                .set_memory(&memory, plan.region.start)
                .map_err(MachineError::Kvm)?,
            memory: memory.clone(),
        };
        let entry = load(plan, &host, &memory)?;
        let confine = seccomp::confine(plan.jail.seccomp);
        let fds = vcpus(&host.kvm, &vm, plan.cpus.max, entry).map_err(MachineError::Kvm)?;
        let parts = Parts {
            vm: &vm,
            memory,
            log: log.clone(),
            proc_self_fd: host.proc_self_fd,
            confine: confine.clone(),
        };
        let devices = Devices::build(plan, parts).map_err(MachineError::Devices)?;
        let bus = Arc::new(Bus::new(devices.slots(), devices.starter(), log));
        timeline.count_exits(exit_counters(&fds));
        kick::install().map_err(MachineError::Signal)?;
        let ending = Arc::new(Ending::new().map_err(MachineError::Event)?);
        let progress = Arc::new(Event::new().map_err(MachineError::Event)?);
        let surroundings = Surroundings {
            bus: Arc::clone(&bus),
            rested: Arc::clone(&progress),
            timeline: Arc::clone(&timeline),
            ending: Arc::clone(&ending),
            confine: confine.clone(),
        };
        let vcpus = spawn(fds, &surroundings).map_err(MachineError::Thread)?;
        Ok(Self {
            vcpus,
            devices,
            confine,
            timeline,
            ending,
            state: State::Paused,
            progress,
            bus,
            memory_bytes: plan.memory_bytes,
            region,
            vm,
        })
    }

    /// Starts devices, then vCPUs.
    pub fn resume(&mut self) {
        self.devices.resume();
        for vcpu in &self.vcpus {
            vcpu.resume();
        }
        self.state = State::Running;
    }

    /// Begins to stop vCPUs, then devices, if it runs.
    pub fn begin_pause(&mut self) {
        if !self.is_running() {
            return;
        }
        self.state = State::VcpusStop;
        for vcpu in &self.vcpus {
            vcpu.pause();
        }
    }

    /// Readable when a pause that was begun may go on.
    #[must_use]
    pub fn progress(&self) -> &Event {
        &self.progress
    }

    /// Goes on with a pause. True once nothing touches guest memory.
    pub fn advance(&mut self) -> io::Result<bool> {
        self.progress.clear()?;
        match &self.state {
            State::VcpusStop if self.vcpus.iter().all(Vcpu::is_at_rest) => {
                let stopped = Arc::new(AtomicBool::new(false));
                let progress = Arc::clone(&self.progress);
                self.state = State::DevicesStop {
                    stopped: Arc::clone(&stopped),
                };
                self.devices.begin_pause(move || {
                    stopped.store(true, Ordering::SeqCst);
                    // An eventfd of ours that cannot be written would be a bug of the host's; the
                    // order to stop is still heard.
                    let _signalled = progress.signal();
                });
            }
            State::DevicesStop { stopped } if stopped.load(Ordering::SeqCst) => {
                self.state = State::Paused;
            }
            _ => {}
        }
        Ok(matches!(self.state, State::Paused))
    }

    /// Writes out what the guest's early log has of a line.
    pub fn flush_log(&self) {
        self.bus.flush_log();
    }

    /// Whether it is running, or else paused or on the way to it.
    #[must_use]
    pub fn is_running(&self) -> bool {
        matches!(self.state, State::Running)
    }

    /// What it knows about itself.
    #[must_use]
    pub fn stats(&self) -> Stats {
        Stats {
            user_exits: self.vcpus.iter().map(Vcpu::exits).sum(),
            kvm_exits: self.timeline.kvm_exits(),
            memory_mib: self.memory_mib(),
            timeline: self.timeline.marks(),
        }
    }

    /// Asks the guest to have this much memory.
    pub fn resize(&mut self, memory_mib: u32) -> Result<(), ResizeError> {
        let bytes = u64::from(memory_mib) << 20;
        let more = bytes
            .checked_sub(self.memory_bytes)
            .ok_or(ResizeError::BelowBoot)?;
        let usable = self.region.extend(&self.vm, more)?;
        self.devices.resize(more, usable)
    }

    /// The memory that the guest has now, MiB.
    #[must_use]
    pub fn memory_mib(&self) -> u32 {
        let plugged = self.devices.mem().map_or(0, mem::Host::plugged);
        // Both come from numbers of this size.
        u32::try_from((self.memory_bytes + plugged) >> 20).unwrap_or(u32::MAX)
    }

    /// The host end of its memory device, if it can grow.
    #[must_use]
    pub fn mem(&self) -> Option<&mem::Host> {
        self.devices.mem()
    }

    /// The host end of its socket device.
    #[must_use]
    pub fn vsock(&self) -> &vsock::Host {
        self.devices.vsock()
    }

    /// How its threads confine themselves.
    #[must_use]
    pub fn confine(&self) -> &Confine {
        &self.confine
    }

    /// Its milestones.
    #[must_use]
    pub fn timeline(&self) -> &Timeline {
        &self.timeline
    }

    /// Where its end is told.
    #[must_use]
    pub fn ending(&self) -> &Ending {
        &self.ending
    }
}

impl Region {
    /// Makes enough of the region usable for `bytes` of it; returns how much is.
    fn extend(&mut self, vm: &Vm, bytes: u64) -> Result<u64, ResizeError> {
        let Range { start, end } = self.addresses;
        let usable = bytes.saturating_add(USABLE_BEYOND_BYTES).min(end - start);
        if usable > self.usable {
            let range = start + self.usable..start + usable;
            vm.add_memory(self.next_slot, &self.memory, &range)
                .map_err(ResizeError::Kvm)?;
            self.next_slot += 1;
            self.usable = usable;
        }
        Ok(self.usable)
    }
}

/// Fills memory; returns the kernel's entry point.
fn load(plan: &Plan, host: &Host, memory: &GuestMemory) -> Result<u64, MachineError> {
    let bytes = plan.memory_bytes;
    let (entry, end) = kernel::load(memory, bytes, &host.kernel).map_err(MachineError::Kernel)?;
    let initrd =
        kernel::load_initrd(memory, bytes, end, &host.initrd).map_err(MachineError::Initrd)?;
    boot::write_tables(memory, bytes, plan.cpus.max, initrd, &plan.cmdline)
        .map_err(MachineError::Memory)?;
    Ok(entry)
}

/// Creates all vCPUs; the first one is ready to run the kernel.
fn vcpus(kvm: &Kvm, vm: &Vm, count: u8, entry: u64) -> Result<Vec<VcpuFd>, KvmError> {
    let supported = kvm.supported_cpuid()?;
    let processor = Processor {
        vcpus: count,
        tsc_deadline: kvm.has_tsc_deadline(),
    };
    let mut vcpus = Vec::with_capacity(usize::from(count));
    for id in 0..count {
        let vcpu = vm.create_vcpu(id)?;
        let cpuid = kvm::cpuid(&processor.cpuid(supported.as_slice(), id))?;
        x86_64::set_processor(&vcpu, &cpuid)?;
        vcpus.push(vcpu);
    }
    if let Some(boot) = vcpus.first() {
        x86_64::set_entry(boot, entry)?;
    }
    Ok(vcpus)
}

/// All counters, or none where KVM does not count.
fn exit_counters(vcpus: &[VcpuFd]) -> Vec<ExitCounter> {
    let counters: Option<Vec<ExitCounter>> = vcpus
        .iter()
        .map(|vcpu| kvm::statistics_of(vcpu).and_then(ExitCounter::new))
        .collect();
    counters.unwrap_or_default()
}

fn spawn(vcpus: Vec<VcpuFd>, surroundings: &Surroundings) -> io::Result<Vec<Vcpu>> {
    (0..)
        .zip(vcpus)
        .map(|(id, fd)| Vcpu::spawn(id, fd, surroundings.clone()))
        .collect()
}
