//! Pause and resume: all processes of a container stop where they are, and go on from there.
//!
//! A container that is being paused or resumed is in a phase of its own, so that two such orders cannot overtake each other.

use super::{Event, Handle, Machine, Sandbox, TaskError};
use crate::container::Freezer;
use crate::process::{Phase, ProcessKey};

impl Handle {
    /// Pauses a created or running container.
    pub(crate) async fn pause(&self, container: String) -> Result<(), TaskError> {
        self.run(pause(self.clone(), ProcessKey::init(&container)))
            .await
    }

    /// Resumes a paused container: it is created or running again.
    pub(crate) async fn resume(&self, container: String) -> Result<(), TaskError> {
        self.run(resume(self.clone(), ProcessKey::init(&container)))
            .await
    }
}

async fn pause(handle: Handle, key: ProcessKey) -> Result<(), TaskError> {
    let machine = {
        let key = key.clone();
        let phases = [Phase::Created, Phase::Running];
        handle
            .ask(move |sandbox| sandbox.begin_change(&key, &phases, Freezer::Freezing))
            .await??
    };
    let agent = machine.agent().await?;
    let result = agent.pause(&key).await;
    let now = match result {
        Ok(()) => Freezer::Frozen,
        Err(_) => Freezer::Thawed,
    };
    // While `agent` is held: the VM stands still only when the record says why.
    handle
        .ask(move |sandbox| sandbox.end_change(&key, now))
        .await?;
    match result {
        Ok(()) => Ok(()),
        Err(error) => Err(machine.explain(error).await),
    }
}

async fn resume(handle: Handle, key: ProcessKey) -> Result<(), TaskError> {
    let machine = {
        let key = key.clone();
        handle
            .ask(move |sandbox| sandbox.begin_change(&key, &[Phase::Paused], Freezer::Thawing))
            .await??
    };
    let agent = machine.agent().await?;
    let result = agent.resume(&key).await;
    let now = match result {
        Ok(()) => Freezer::Thawed,
        Err(_) => Freezer::Frozen,
    };
    handle
        .ask(move |sandbox| sandbox.end_change(&key, now))
        .await?;
    match result {
        Ok(()) => Ok(()),
        Err(error) => Err(machine.explain(error).await),
    }
}

impl Sandbox {
    fn begin_change(
        &mut self,
        key: &ProcessKey,
        phases: &[Phase],
        change: Freezer,
    ) -> Result<Machine, TaskError> {
        let machine = self.machine_for(key, phases)?;
        if let Some(container) = self.containers.get_mut(&key.container) {
            container.freezer = change;
        }
        Ok(machine)
    }

    /// The container may have gone meanwhile.
    fn end_change(&mut self, key: &ProcessKey, now: Freezer) {
        let Some(container) = self.containers.get_mut(&key.container) else {
            return;
        };
        let before = container.freezer;
        container.freezer = now;
        tracing::debug!(process = %key, ?now, "the freezer has changed");
        let id = key.container.clone();
        match (before, now) {
            (Freezer::Freezing, Freezer::Frozen) => {
                self.events.publish(Event::Paused { container: id })
            }
            (Freezer::Thawing, Freezer::Thawed) => {
                self.events.publish(Event::Resumed { container: id })
            }
            _ => {}
        }
        self.save();
    }
}
