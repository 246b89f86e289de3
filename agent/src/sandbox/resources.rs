//! Limits, statistics and the list of processes.
//!
//! What may take time, because it waits for the kernel to take memory from processes or to look into them, is done by workers beside this task;
//! there is one such look at a time.

use std::collections::HashMap;
use std::sync::Arc;

use agent_api::agent::ProcessInfo;

use super::{Reply, Sandbox, SandboxError, answer, io};
use crate::log::warn;
use crate::{cgroup, plan, processes};

impl Sandbox {
    pub(super) fn update(&mut self, id: &str, resources: &[u8], reply: Reply<()>) {
        let planned = self.alive(id).and_then(|container| {
            let limits = plan::update(resources, &container.cgroup.present())?;
            Ok((limits, container.cgroup.path().to_owned()))
        });
        let turn = self.settings.writer.turn().map_err(SandboxError::from);
        let (turn, (limits, path)) = match turn.and_then(|turn| Ok((turn, planned?))) {
            Ok(planned) => planned,
            Err(error) => return answer(reply, Err(error)),
        };
        tell_ignored(id, &limits.ignored);
        turn.give(move || {
            let written = cgroup::write(&path, &limits);
            answer(reply, written.map_err(SandboxError::from));
        });
    }

    pub(super) fn stats(&mut self, id: &str) -> Result<HashMap<String, String>, SandboxError> {
        let container = self.alive(id)?;
        container
            .cgroup
            .statistics()
            .map_err(io("cannot read the container's statistics"))
    }

    pub(super) fn processes(&mut self, id: &str, reply: Reply<Vec<ProcessInfo>>) {
        let Ok(listing) = Arc::clone(&self.listing).try_acquire_owned() else {
            return answer(reply, Err(SandboxError::Busy("a list of processes")));
        };
        let pids = self.alive(id).map(drop).and_then(|()| self.pids(id));
        let turn = self.settings.looker.turn().map_err(SandboxError::from);
        match turn.and_then(|turn| Ok((turn, pids?))) {
            Err(error) => answer(reply, Err(error)),
            Ok((turn, pids)) => turn.give(move || {
                let listed = processes::list(&pids);
                drop(listing);
                answer(reply, listed.map_err(io("cannot read the clocks")));
            }),
        }
    }
}

/// Says on the console what has no effect.
pub(super) fn tell_ignored(id: &str, ignored: &[String]) {
    for what in ignored {
        warn!("{id}: {what} has no effect in a guest");
    }
}
