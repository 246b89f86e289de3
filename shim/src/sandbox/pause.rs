//! Pause and resume: all processes of a container stop where they are, and go on from there.
//!
//! A container that is being paused or resumed is in a phase of its own, so that two such orders cannot overtake each other. Where the agent
//! does not answer in time, it is let go on whatever was ordered (`undo.rs`).

use super::{Event, Handle, Machine, Sandbox, TaskError};
use crate::container::Freezer;
use crate::process::{Phase, ProcessKey};

/// One of the two orders.
#[derive(Clone, Copy, Debug)]
enum Order {
    Pause,
    Resume,
}

impl Order {
    /// What the container must be before.
    fn phases(self) -> &'static [Phase] {
        match self {
            Self::Pause => &[Phase::Created, Phase::Running],
            Self::Resume => &[Phase::Paused],
        }
    }

    /// What its freezer is before, meanwhile and afterwards.
    fn freezer(self) -> [Freezer; 3] {
        match self {
            Self::Pause => [Freezer::Thawed, Freezer::Freezing, Freezer::Frozen],
            Self::Resume => [Freezer::Frozen, Freezer::Thawing, Freezer::Thawed],
        }
    }
}

impl Handle {
    /// Pauses a created or running container.
    pub(crate) async fn pause(&self, container: String) -> Result<(), TaskError> {
        let key = ProcessKey::init(&container);
        self.run(carry_out(self.clone(), key, Order::Pause)).await
    }

    /// Resumes a paused container: it is created or running again.
    pub(crate) async fn resume(&self, container: String) -> Result<(), TaskError> {
        let key = ProcessKey::init(&container);
        self.run(carry_out(self.clone(), key, Order::Resume)).await
    }
}

async fn carry_out(handle: Handle, key: ProcessKey, order: Order) -> Result<(), TaskError> {
    let [before, meanwhile, afterwards] = order.freezer();
    let machine = {
        let key = key.clone();
        handle
            .ask(move |sandbox| sandbox.begin_change(&key, order.phases(), meanwhile))
            .await??
    };
    let agent = match machine.agent().await {
        Ok(agent) => agent,
        Err(error) => {
            handle
                .ask(move |sandbox| sandbox.end_change(&key, before))
                .await?;
            return Err(error);
        }
    };
    let result = match order {
        Order::Pause => agent.pause(&key).await,
        Order::Resume => agent.resume(&key).await,
    };
    let now = match &result {
        Ok(()) => afterwards,
        // It may be paused or not, or be it soon.
        Err(error) if error.is_open() => {
            handle.undo_pause(machine.clone(), key.clone());
            meanwhile
        }
        Err(_) => before,
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
    pub(super) fn end_change(&mut self, key: &ProcessKey, now: Freezer) {
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
