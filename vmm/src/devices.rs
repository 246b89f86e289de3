//! The virtio devices of a machine: each in its slot, behind its transport, connected to KVM.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vmm_virtio::console::Console;
use vmm_virtio::fs::{Fs, FsConfig, FsConfigError};
use vmm_virtio::mem::{self, Mem, RequestError};
use vmm_virtio::rng::Rng;
use vmm_virtio::vsock::{self, Vsock};
use vmm_virtio::{Confine, Device, Event, GuestMemory, Irq, Transport};

use crate::config::Plan;
use crate::kvm::{KvmError, Vm};
use crate::layout::{SLOTS, Slot};
use crate::log::Log;
use crate::memory::{Leaked, Plugged};
use crate::starter::Starter;

/// Why devices could not be made.
#[derive(Debug, thiserror::Error)]
pub enum DevicesError {
    /// An eventfd.
    #[error("make an event")]
    Event(#[source] io::Error),
    /// KVM.
    #[error("kvm")]
    Kvm(#[source] KvmError),
    /// The file system device.
    #[error("share")]
    Fs(#[source] FsConfigError),
    /// The thread that starts devices.
    #[error("start the thread for devices")]
    Starter(#[source] io::Error),
}

/// Why the guest was not asked to have more memory, or less.
#[derive(Debug, thiserror::Error)]
pub enum ResizeError {
    /// There is no memory device.
    #[error("the machine was made without memory to gain")]
    Fixed,
    /// RAM stays.
    #[error("a machine keeps the memory with which it has booted")]
    BelowBoot,
    /// KVM.
    #[error("kvm")]
    Kvm(#[source] KvmError),
    /// Not so much.
    #[error("memory beyond that of the boot")]
    Request(#[source] RequestError),
    /// The interrupt could not be raised.
    #[error("tell the guest")]
    Tell(#[source] io::Error),
}

/// A device behind its transport, as the bus and the machine share it.
pub type SharedTransport = Arc<Mutex<Transport>>;

/// All virtio devices.
#[derive(Debug)]
pub struct Devices {
    slots: [Option<SharedTransport>; SLOTS],
    starter: Starter,
    vsock: vsock::Host,
    mem: Option<(mem::Host, Arc<Irq>)>,
}

/// What a device is made with.
#[derive(Debug)]
pub struct Parts<'a> {
    /// The machine they are connected to.
    pub vm: &'a Vm,
    /// Its memory.
    pub memory: Leaked,
    /// Where the guest's log goes.
    pub log: Log,
    /// `/proc/self/fd`.
    pub proc_self_fd: OwnedFd,
    /// For their threads.
    pub confine: Confine,
}

impl Devices {
    /// Makes the devices of `plan`, all in reset.
    pub fn build(plan: &Plan, parts: Parts<'_>) -> Result<Self, DevicesError> {
        let Parts {
            vm,
            memory,
            log,
            proc_self_fd,
            confine,
        } = parts;
        let starter = Starter::spawn(confine.clone()).map_err(DevicesError::Starter)?;
        let mut slots = [const { None }; SLOTS];
        let mut place = |slot: Slot, device: Box<dyn Device>| {
            let irq = Arc::new(Irq::new(Event::new().map_err(DevicesError::Event)?));
            let whole = (device, Arc::clone(&irq));
            let transport = connect(vm, slot, whole, memory.shared(), confine.clone())?;
            slots[slot as usize] = Some(Arc::new(Mutex::new(transport)));
            Ok(irq)
        };
        let (device, vsock) = Vsock::new(plan.vsock.cid, plan.vsock.host_ports.clone())
            .map_err(DevicesError::Event)?;
        place(Slot::Vsock, Box::new(device))?;
        if let Some(share) = &plan.share {
            let config = FsConfig {
                tag: share.tag.clone(),
                root: share.root.clone(),
                proc_self_fd,
            };
            place(
                Slot::Fs,
                Box::new(Fs::new(config).map_err(DevicesError::Fs)?),
            )?;
        }
        place(Slot::Console, Box::new(Console::new(log)))?;
        place(Slot::Rng, Box::<Rng>::default())?;
        let mut mem = None;
        if !plan.region.is_empty() {
            let backing = Plugged::new(memory.clone(), plan.region.clone());
            let (device, host) =
                Mem::new(plan.region.clone(), Box::new(backing)).map_err(DevicesError::Event)?;
            mem = Some((host, place(Slot::Mem, Box::new(device))?));
        }
        Ok(Self {
            slots,
            starter,
            vsock,
            mem,
        })
    }

    /// The devices by slot.
    #[must_use]
    pub fn slots(&self) -> [Option<SharedTransport>; SLOTS] {
        self.slots.clone()
    }

    /// The thread that starts them.
    #[must_use]
    pub fn starter(&self) -> Starter {
        self.starter.clone()
    }

    /// The host end of the socket device.
    #[must_use]
    pub fn vsock(&self) -> &vsock::Host {
        &self.vsock
    }

    /// The host end of the memory device.
    #[must_use]
    pub fn mem(&self) -> Option<&mem::Host> {
        self.mem.as_ref().map(|(host, _)| host)
    }

    /// Asks the guest to have so many bytes plugged, of the region's first `usable` ones.
    pub fn resize(&self, bytes: u64, usable: u64) -> Result<(), ResizeError> {
        let (mem, irq) = self.mem.as_ref().ok_or(ResizeError::Fixed)?;
        mem.request(bytes, usable).map_err(ResizeError::Request)?;
        // Not by way of the transport, which may be locked for as long as the guest likes.
        irq.configuration().map_err(ResizeError::Tell)
    }

    /// Begins to stop them all; `done` is told once they are, and their state is kept. No vCPU may
    /// run. A device whose thread is in a call of the host's is stopped when that returns.
    pub fn begin_pause(&self, done: impl FnOnce() + Send + 'static) {
        let transports: Vec<_> = self.slots.iter().flatten().cloned().collect();
        self.starter.post(move || {
            for transport in transports {
                lock(&transport).pause();
            }
            done();
        });
    }

    /// Starts those again that were live when they were paused.
    pub fn resume(&self) {
        for transport in self.slots.iter().flatten() {
            let transport = Arc::clone(transport);
            self.starter.run(move || lock(&transport).resume());
        }
    }
}

/// Locks a transport. A panic ends the process, so none is ever seen poisoned.
pub fn lock(transport: &Mutex<Transport>) -> MutexGuard<'_, Transport> {
    transport.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Puts a device behind a transport, and its interrupt and kicks into KVM.
fn connect(
    vm: &Vm,
    slot: Slot,
    (device, irq): (Box<dyn Device>, Arc<Irq>),
    memory: Arc<GuestMemory>,
    confine: Confine,
) -> Result<Transport, DevicesError> {
    vm.connect_interrupt(slot, irq.line())
        .map_err(DevicesError::Kvm)?;
    let transport = Transport::new(device, memory, irq, confine).map_err(DevicesError::Event)?;
    for (queue, kick) in (0u32..).zip(transport.kicks()) {
        vm.connect_kick(slot, queue, kick)
            .map_err(DevicesError::Kvm)?;
    }
    Ok(transport)
}
