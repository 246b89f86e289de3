//! A vCPU is a thread that spends its life in `KVM_RUN`.
//!
//! ```text
//!             resume                  guest ends the machine, or an error
//!   paused ───────────► running ─────────────────────────────────────────► finished
//!     │   ◄───────────    │                                                   ▲
//!     │       pause       └──────────────── finish ───────────────────────────┤
//!     └──────────────────────────────────── finish ───────────────────────────┘
//! ```
//!
//! It begins paused. The owner changes what it *wants*, kicks the thread out of the guest and waits until the thread has taken note. A thread
//! looks at what is wanted only after `KVM_RUN` was interrupted, when no access of the guest's is half done, so a paused vCPU can be saved.
//! A vCPU the kernel has not started yet is running too: it waits for its start-up interrupt inside `KVM_RUN`.
//!
//! Ways to fail: KVM refuses to run ([`VcpuError::Run`]), the guest touches memory it has not plugged ([`VcpuError::Memory`]), or it does what
//! no guest does ([`VcpuError::Exit`]). The machine then ends.

/// Exits and what to do about them.
pub mod exit;
/// Interrupting a running vCPU.
#[expect(
    unsafe_code,
    reason = "writes a flag in memory shared with the kernel from a signal handler"
)]
pub mod kick;
/// Processor state.
pub mod x86_64;

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use kvm_ioctls::VcpuFd;
use vmm_api::StopReason;
use vmm_sys_util::errno;
use vmm_sys_util::signal::Killable;
use vmm_virtio::{Confine, Event};

use crate::bus::Bus;
use crate::ending::Ending;
use crate::timeline::Timeline;
use exit::ExitError;
use kick::Kickable;

/// The name under which a vCPU thread confines itself.
pub const THREAD: &str = "vcpu";
/// Exit handling recurses little and keeps nothing large on the stack.
const STACK_BYTES: usize = 64 * 1024;

/// Why a vCPU failed.
#[derive(Debug, thiserror::Error)]
pub enum VcpuError {
    /// The system call filter could not be set.
    #[error("confine the thread of vcpu {id}")]
    Confine {
        /// Which vCPU.
        id: u8,
        /// The host's reason.
        #[source]
        source: io::Error,
    },
    /// KVM refused to run it.
    #[error("run vcpu {id}")]
    Run {
        /// Which vCPU.
        id: u8,
        /// KVM's reason.
        #[source]
        source: errno::Error,
    },
    /// It touched memory that is not plugged, or the host has none left.
    #[error("vcpu {id} touched memory that the machine does not have")]
    Memory {
        /// Which vCPU.
        id: u8,
    },
    /// It left the guest for a reason there is no answer to.
    #[error("vcpu {id}")]
    Exit {
        /// Which vCPU.
        id: u8,
        /// The reason.
        #[source]
        source: ExitError,
    },
}

/// What a vCPU thread works with.
#[derive(Clone, Debug)]
pub struct Surroundings {
    /// Its devices.
    pub bus: Arc<Bus>,
    /// Where milestones go.
    pub timeline: Arc<Timeline>,
    /// Where the machine's end goes.
    pub ending: Arc<Ending>,
    /// Signalled when the vCPU rests: it has paused, or finished.
    pub rested: Arc<Event>,
    /// How the thread confines itself.
    pub confine: Confine,
}

/// A vCPU and its thread. Dropping it finishes the thread.
#[derive(Debug)]
pub struct Vcpu {
    thread: Option<JoinHandle<()>>,
    gate: Arc<Gate>,
    exits: Arc<AtomicU64>,
}

impl Vcpu {
    /// Starts the thread of vCPU number `id`, paused.
    pub fn spawn(id: u8, fd: VcpuFd, surroundings: Surroundings) -> io::Result<Self> {
        let gate = Arc::new(Gate::new(Arc::clone(&surroundings.rested)));
        let exits = Arc::new(AtomicU64::new(0));
        let runner = Runner {
            id,
            surroundings,
            gate: Arc::clone(&gate),
            exits: Arc::clone(&exits),
        };
        let thread = thread::Builder::new()
            .name(format!("vcpu{id}"))
            .stack_size(STACK_BYTES)
            .spawn(move || runner.live(fd))?;
        Ok(Self {
            thread: Some(thread),
            gate,
            exits,
        })
    }

    /// Lets the vCPU run. A finished one stays finished.
    pub fn resume(&self) {
        self.gate.want(Wanted::Running);
    }

    /// Asks the vCPU to pause; [`Vcpu::wait_paused`] waits until it has. Two steps, so that several vCPUs pause at the same time.
    pub fn pause(&self) {
        self.gate.want(Wanted::Paused);
        self.kick();
    }

    /// Waits until the vCPU is paused or finished. Call it after [`Vcpu::pause`].
    pub fn wait_paused(&self) {
        self.gate.wait_for_rest();
    }

    /// Whether the vCPU is paused or finished. [`Surroundings::rested`] tells of it after
    /// [`Vcpu::pause`].
    #[must_use]
    pub fn is_at_rest(&self) -> bool {
        self.gate.is_at_rest()
    }

    /// How often the thread came back from `KVM_RUN`.
    #[must_use]
    pub fn exits(&self) -> u64 {
        self.exits.load(Ordering::Relaxed)
    }

    fn kick(&self) {
        if let Some(thread) = &self.thread {
            // A thread that has ended needs no kick.
            let _ended = thread.kill(kick::signal());
        }
    }
}

impl Drop for Vcpu {
    fn drop(&mut self) {
        self.gate.want(Wanted::Finished);
        self.kick();
        if let Some(thread) = self.thread.take() {
            // The thread returns nothing; a panic has ended the process.
            let _returned = thread.join();
        }
    }
}

/// What runs in the thread.
struct Runner {
    id: u8,
    surroundings: Surroundings,
    gate: Arc<Gate>,
    exits: Arc<AtomicU64>,
}

impl Runner {
    fn live(&self, vcpu: VcpuFd) {
        let id = self.id;
        let ended = match self.surroundings.confine.enter(THREAD) {
            Ok(()) => self.run(Kickable::new(vcpu)),
            Err(source) => Err(VcpuError::Confine { id, source }),
        };
        match ended {
            Ok(Some(reason)) => self.surroundings.ending.reach(reason),
            Ok(None) => {}
            Err(error) => self.surroundings.ending.fail(error),
        }
        self.gate.finish();
    }

    /// Runs and pauses as wanted. None when it was told to finish.
    fn run(&self, mut vcpu: Kickable) -> Result<Option<StopReason>, VcpuError> {
        while self.gate.pass() {
            if let Some(reason) = self.run_until_kicked(&mut vcpu)? {
                return Ok(Some(reason));
            }
        }
        Ok(None)
    }

    fn run_until_kicked(&self, vcpu: &mut Kickable) -> Result<Option<StopReason>, VcpuError> {
        let id = self.id;
        let Surroundings { bus, timeline, .. } = &self.surroundings;
        loop {
            let exit = vcpu.run();
            self.exits.fetch_add(1, Ordering::Relaxed);
            match exit {
                Ok(exit) => {
                    let reason = exit::handle(exit, bus, timeline)
                        .map_err(|source| VcpuError::Exit { id, source })?;
                    if reason.is_some() {
                        return Ok(reason);
                    }
                }
                Err(error) => match rustix::io::Errno::from_raw_os_error(error.errno()) {
                    rustix::io::Errno::INTR => {
                        vcpu.clear();
                        return Ok(None);
                    }
                    // A vCPU that got its start-up interrupt.
                    rustix::io::Errno::AGAIN => {}
                    rustix::io::Errno::FAULT => return Err(VcpuError::Memory { id }),
                    _ => return Err(VcpuError::Run { id, source: error }),
                },
            }
        }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Wanted {
    #[default]
    Paused,
    Running,
    Finished,
}

#[derive(Debug, Default)]
struct State {
    wanted: Wanted,
    running: bool,
    finished: bool,
}

/// Where a vCPU thread and its owner meet.
#[derive(Debug)]
struct Gate {
    state: Mutex<State>,
    changed: Condvar,
    rested: Arc<Event>,
}

impl Gate {
    fn new(rested: Arc<Event>) -> Self {
        Self {
            state: Mutex::default(),
            changed: Condvar::new(),
            rested,
        }
    }

    fn want(&self, wanted: Wanted) {
        let mut state = self.lock();
        if state.wanted != Wanted::Finished {
            state.wanted = wanted;
        }
        self.changed.notify_all();
    }

    /// The thread's side: waits while it is to be paused. False when it is to finish.
    fn pass(&self) -> bool {
        let mut state = self.lock();
        state.running = false;
        self.tell_rested();
        let mut state = self
            .changed
            .wait_while(state, |state| state.wanted == Wanted::Paused)
            .unwrap_or_else(PoisonError::into_inner);
        state.running = state.wanted == Wanted::Running;
        state.running
    }

    fn finish(&self) {
        self.lock().finished = true;
        self.tell_rested();
    }

    fn tell_rested(&self) {
        self.changed.notify_all();
        // An eventfd of ours that cannot be written would be a bug of the host's; the order to stop
        // is still heard.
        let _signalled = self.rested.signal();
    }

    fn is_at_rest(&self) -> bool {
        let state = self.lock();
        !state.running || state.finished
    }

    fn wait_for_rest(&self) {
        let _state = self
            .changed
            .wait_while(self.lock(), |state| state.running && !state.finished)
            .unwrap_or_else(PoisonError::into_inner);
    }

    /// A panic ends the process, so the lock is never seen poisoned.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gate_holds_a_paused_thread_and_lets_a_finished_one_go() {
        let gate = Arc::new(Gate::new(Arc::new(Event::new().unwrap())));
        let thread = thread::spawn({
            let gate = Arc::clone(&gate);
            move || {
                let mut passed = 0;
                while gate.pass() {
                    passed += 1;
                    gate.want(Wanted::Paused);
                }
                passed
            }
        });
        gate.wait_for_rest();
        gate.want(Wanted::Running);
        let state = gate
            .changed
            .wait_while(gate.lock(), |state| state.wanted != Wanted::Paused)
            .unwrap();
        drop(state);
        gate.want(Wanted::Finished);
        assert_eq!(thread.join().unwrap(), 1);
    }

    #[test]
    fn finished_is_final() {
        let gate = Gate::new(Arc::new(Event::new().unwrap()));
        gate.want(Wanted::Finished);
        gate.want(Wanted::Running);
        assert!(!gate.pass());
    }
}
