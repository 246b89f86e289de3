//! The VM's standstill: while every container is paused, the vCPUs do not run either.
//!
//! ```text
//!   running ── all containers are paused and no call into the guest is under way ──► still
//!      ▲────────────────────────── a call into the guest begins ──────────────────────┘
//! ```
//!
//! Calls into the guest are made through [`AgentCalls`] only, which keeps the VM running for as long as it exists; when the last one
//! goes, the owner is asked whether there is a reason to run. Ways to fail: a VMM that does not obey is logged, and the call into
//! the guest then meets its own deadline.

use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::Mutex;

use super::{Handle, Sandbox};
use crate::agent::Agent;
use crate::process::Phase;
use crate::vm::Control;

/// See the module; clones are about the same VM.
#[derive(Clone, Debug)]
pub(super) struct Standstill {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    control: Control,
    handle: Handle,
    /// How many [`AgentCalls`] there are.
    calls: AtomicUsize,
    /// Whether the vCPUs are stopped. Held while they are being stopped or started.
    still: Mutex<bool>,
}

/// The agent of a VM that runs.
#[derive(Debug)]
pub(super) struct AgentCalls {
    agent: Agent,
    shared: Arc<Shared>,
}

impl Standstill {
    /// For a VM that runs.
    pub(super) fn new(control: Control, handle: Handle) -> Self {
        Self {
            shared: Arc::new(Shared {
                control,
                handle,
                calls: AtomicUsize::new(0),
                still: Mutex::new(false),
            }),
        }
    }

    /// Lets the VM run, and keeps it running for the calls to come.
    pub(super) async fn calls(&self, agent: Agent) -> AgentCalls {
        self.shared.calls.fetch_add(1, Ordering::SeqCst);
        let calls = AgentCalls {
            agent,
            shared: self.shared.clone(),
        };
        let mut still = self.shared.still.lock().await;
        if *still {
            match self.shared.control.resume().await {
                Ok(()) => *still = false,
                Err(error) => tracing::error!("the VM does not go on: {error}"),
            }
        }
        drop(still);
        calls
    }

    /// Stops the vCPUs, unless somebody needs them.
    async fn begin(self) {
        let shared = &self.shared;
        let mut still = shared.still.lock().await;
        let is_paused = || shared.handle.ask(|sandbox| sandbox.is_paused());
        if *still || !is_paused().await.unwrap_or(false) {
            return;
        }
        // A call that begins from here on waits for the lock, and then starts them again.
        if shared.calls.load(Ordering::SeqCst) == 0 {
            match shared.control.pause().await {
                Ok(()) => *still = true,
                Err(error) => tracing::warn!("the paused VM goes on running: {error}"),
            }
        }
    }
}

impl Deref for AgentCalls {
    type Target = Agent;

    fn deref(&self) -> &Agent {
        &self.agent
    }
}

impl Drop for AgentCalls {
    fn drop(&mut self) {
        if self.shared.calls.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.shared.handle.tell(|sandbox| sandbox.rest());
        }
    }
}

impl Sandbox {
    /// Lets the VM stand still if all that is in it does.
    fn rest(&mut self) {
        if self.is_paused()
            && let Some(machine) = &self.machine
        {
            tokio::spawn(machine.standstill.clone().begin());
        }
    }

    fn is_paused(&self) -> bool {
        let running = |machine: &super::Machine| machine.vm.end().is_none();
        !self.closing
            && self.machine.as_ref().is_some_and(running)
            && !self.containers.is_empty()
            && self.containers.values().all(|container| {
                container.phase(&container.init) == Phase::Paused && !container.is_dying()
            })
    }
}
