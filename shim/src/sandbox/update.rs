//! Update: the limits of a container are changed while it lives, and its VM goes with them.
//!
//! ```text
//!   more:  memory is plugged ─► vCPUs come online ─► the limits are set
//!   less:                                            the limits are set ─► vCPUs are parked ─► memory is given back
//! ```
//!
//! What the VM must be follows from the limits of all its containers ([`crate::spec::VmSize::extent_for`]); one update of a sandbox is under
//! way at a time. Ways to fail: the VM cannot become large enough, or the guest does not take what it is given, or not the limits. The limits are then as
//! before, and what the VM has gained is taken back. Giving back is the guest's good will: what it keeps is logged.

use std::time::Duration;

use super::query::ALIVE;
use super::{Handle, Machine, Sandbox, TaskError};
use crate::agent::{Agent, AgentError};
use crate::deadlines::{PLUGGED, UNPLUGGED};
use crate::process::ProcessKey;
use crate::spec::{self, Demand, Extent, SizeError, SpecError};
use crate::vm::ControlError;

impl Handle {
    /// Sets the limits that an OCI `linux.resources` object, JSON, gives; all others stay.
    pub(crate) async fn update(
        &self,
        container: String,
        resources: Vec<u8>,
    ) -> Result<(), TaskError> {
        let key = ProcessKey::init(&container);
        self.run(update(self.clone(), key, resources)).await
    }
}

async fn update(handle: Handle, key: ProcessKey, resources: Vec<u8>) -> Result<(), TaskError> {
    let (change, resources) = spec::resources(&resources)?;
    let machine = {
        let key = key.clone();
        handle
            .ask(move |sandbox| sandbox.machine_for(&key, &ALIVE))
            .await??
    };
    let agent = machine.agent().await?;
    let mut extent = machine.extent.lock().await;
    let demands = {
        let key = key.clone();
        handle
            .ask(move |sandbox| sandbox.demands_after(&key, change))
            .await??
    };
    let wanted = machine.size.extent_for(&demands).map_err(SpecError::from)?;
    let before = *extent;
    let set = async {
        machine.grow(&agent, &mut extent, wanted).await?;
        match agent.update(&key, resources).await {
            Ok(()) => Ok(()),
            Err(error) => Err(machine.explain(error).await),
        }
    };
    let set = set.await;
    let left = match &set {
        Ok(()) => wanted,
        // The limits may be set: the VM keeps what they ask for, and what was asked for before.
        Err(TaskError::Agent(error)) if error.is_open() => *extent,
        Err(_) => before,
    };
    machine.shrink(&agent, &mut extent, left).await;
    set?;
    handle
        .ask(move |sandbox| sandbox.keep_demand(&key, change))
        .await
}

impl Machine {
    /// Makes the VM large enough for the limits of all containers that there are. On an error it is as before.
    pub(super) async fn make_room(&self, agent: &Agent, handle: &Handle) -> Result<(), TaskError> {
        let mut extent = self.extent.lock().await;
        let demands = handle.ask(|sandbox| sandbox.demands()).await?;
        let wanted = self.size.extent_for(&demands).map_err(SpecError::from)?;
        let before = *extent;
        let grown = self.grow(agent, &mut extent, wanted).await;
        if grown.is_err() {
            self.shrink(agent, &mut extent, before).await;
        }
        grown
    }

    /// Gives the guest what it lacks of `wanted`. On an error it may have got some of it, and `now` says that it got all.
    async fn grow(&self, agent: &Agent, now: &mut Extent, wanted: Extent) -> Result<(), TaskError> {
        if wanted.memory_mib > now.memory_mib {
            now.memory_mib = wanted.memory_mib;
            tracing::debug!(memory_mib = wanted.memory_mib, "the VM grows");
            self.resize(wanted.memory_mib, PLUGGED).await?;
        }
        if wanted.vcpus > now.vcpus {
            now.vcpus = wanted.vcpus;
            tracing::debug!(vcpus = wanted.vcpus, "vCPUs come online");
            if let Err(error) = agent.online_cpus(wanted.vcpus).await {
                return Err(self.explain(error).await);
            }
        }
        Ok(())
    }

    /// Takes from the guest what it has beyond `wanted`, as far as it gives it.
    async fn shrink(&self, agent: &Agent, now: &mut Extent, wanted: Extent) {
        if wanted.vcpus < now.vcpus {
            match agent.online_cpus(wanted.vcpus).await {
                Ok(()) => now.vcpus = wanted.vcpus,
                Err(error) => tracing::info!("the guest keeps vCPUs: {error}"),
            }
        }
        if wanted.memory_mib < now.memory_mib {
            now.memory_mib = wanted.memory_mib;
            if let Err(error) = self.resize(wanted.memory_mib, UNPLUGGED).await {
                tracing::info!("the VM does not shrink: {error}");
            }
        }
    }

    /// Asks the guest to have this much memory, and waits until it has.
    async fn resize(&self, wanted_mib: u32, within: Duration) -> Result<(), TaskError> {
        match tokio::time::timeout(within, self.vm.control.resize(wanted_mib)).await {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(ControlError::Closed)) => return Err(self.explain(AgentError::Lost).await),
            Ok(Err(error)) => tracing::warn!("the VMM does not ask the guest: {error}"),
            Err(_) => {}
        }
        let error = SizeError::Guest {
            wanted_mib,
            guest_mib: self.memory_mib().await,
        };
        Err(SpecError::from(error).into())
    }

    /// How much memory it has, as far as the VMM tells.
    async fn memory_mib(&self) -> u32 {
        match self.vm.control.stats().await {
            Ok(stats) => stats.memory_mib,
            Err(error) => {
                tracing::debug!("the VMM does not tell: {error}");
                self.size.memory_mib
            }
        }
    }
}

impl Sandbox {
    /// What all containers may use.
    fn demands(&self) -> Vec<Demand> {
        let containers = self.containers.values();
        containers.map(|container| container.demand).collect()
    }

    /// What all containers may use when `change` has been made to that of `key`.
    fn demands_after(&self, key: &ProcessKey, change: Demand) -> Result<Vec<Demand>, TaskError> {
        self.container(&key.container)?;
        let demands = self.containers.iter().map(|(id, container)| {
            if *id == key.container {
                container.demand.updated(change)
            } else {
                container.demand
            }
        });
        Ok(demands.collect())
    }

    /// Keeps it. A container that was deleted meanwhile demands nothing.
    fn keep_demand(&mut self, key: &ProcessKey, change: Demand) {
        if let Some(container) = self.containers.get_mut(&key.container) {
            container.demand = container.demand.updated(change);
        }
    }
}
