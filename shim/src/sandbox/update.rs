//! Update: the limits of a container are changed while it lives. The VM stays as large as it was made.

use super::query::ALIVE;
use super::{Handle, TaskError};
use crate::process::ProcessKey;
use crate::spec::{self, SpecError};

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
    let (demand, resources) = spec::resources(&resources)?;
    let machine = {
        let key = key.clone();
        handle
            .ask(move |sandbox| sandbox.machine_for(&key, &ALIVE))
            .await??
    };
    demand.check_fits(machine.size).map_err(SpecError::from)?;
    let agent = machine.agent().await?;
    match agent.update(&key, resources).await {
        Ok(()) => Ok(()),
        Err(error) => Err(machine.explain(error).await),
    }
}
