//! Delete: what a stopped process still has to say is delivered, then it is removed. A created one is removed too.

use super::{Handle, Machine, Sandbox, TaskError, undo};
use crate::agent::AgentError;
use crate::events::Event;
use crate::hooks;
use crate::process::{Exit, Phase, ProcessKey};
use crate::rootfs::ContainerFiles;
use crate::state::Status;
use crate::stdio::{LeftOutputs, ProcessStreams};

/// What is left to say of a deleted process.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Deleted {
    /// The pid that was reported for it.
    pub(crate) pid: i32,
    pub(crate) exit: Exit,
}

/// What the owner gave the operation to work with.
struct Begun {
    machine: Machine,
    pid: i32,
    is_member: bool,
    streams: Option<ProcessStreams>,
    /// The phase to go back to when the agent refuses.
    before: Phase,
}

impl Handle {
    /// Deletes a process; with a container's init, the container.
    pub(crate) async fn delete(&self, key: ProcessKey) -> Result<Deleted, TaskError> {
        self.run(delete(self.clone(), key)).await
    }
}

async fn delete(handle: Handle, key: ProcessKey) -> Result<Deleted, TaskError> {
    let begun = {
        let key = key.clone();
        handle
            .ask(move |sandbox| sandbox.begin_delete(&key))
            .await??
    };
    let left = deliver(&key, begun.streams).await;
    let result = if begun.before == Phase::Unknown {
        undo::remove_in_guest(&begun.machine, &key).await;
        Ok(())
    } else {
        delete_in_guest(&begun.machine, &key).await
    };
    if result.is_ok() && key.is_init() {
        // Before the id can be taken again.
        let id = key.container.clone();
        let files = handle.ask(move |sandbox| sandbox.take_files(&id)).await?;
        if let Some(files) = files {
            handle.remove_files(files).await;
        }
    }
    let failed = result.is_err().then_some(begun.before);
    let (hooks, exit) = handle
        .ask(move |sandbox| {
            let hooks = sandbox.hooks(&key, Status::Stopped);
            sandbox.keep_outputs(&key, left);
            (hooks, sandbox.end_delete(&key, failed))
        })
        .await?;
    result?;
    let (hooks, state) = hooks?;
    // Those of a member are run by who removes its record.
    if !begun.is_member {
        hooks::run_anyway(&hooks.poststop, &state).await;
    }
    Ok(Deleted {
        pid: begun.pid,
        exit,
    })
}

/// Delivers what a process has put out. The processes of a container end with its init; those that an exec has started live on, and may write on
/// where it did.
async fn deliver(key: &ProcessKey, streams: Option<ProcessStreams>) -> LeftOutputs {
    let Some(streams) = streams else {
        return LeftOutputs::default();
    };
    let left = if key.is_init() {
        streams.drain().await;
        LeftOutputs::default()
    } else {
        streams.drain_owed().await
    };
    tracing::debug!(process = %key, "its output is delivered");
    left
}

/// With the VM gone, so is its half of the process.
async fn delete_in_guest(machine: &Machine, key: &ProcessKey) -> Result<(), TaskError> {
    if machine.vm.end().is_some() {
        return Ok(());
    }
    match machine.agent().await?.delete(key).await {
        Ok(())
        | Err(
            AgentError::Lost
            | AgentError::Refused {
                code: ttrpc::Code::NOT_FOUND,
                ..
            },
        ) => Ok(()),
        Err(e) => Err(e.into()),
    }
}

impl Sandbox {
    fn begin_delete(&mut self, key: &ProcessKey) -> Result<Begun, TaskError> {
        let machine = self.machine()?.clone();
        let before = self.phase(key)?;
        if !matches!(before, Phase::Created | Phase::Stopped | Phase::Unknown) {
            return Err(TaskError::Phase {
                key: key.clone(),
                phase: before,
            });
        }
        let pid = self.pid(&key.container);
        let is_member = self.container(&key.container)?.stand_in.is_some();
        let process = self.process_mut(key)?;
        process.phase = Phase::Deleting;
        // Output of a process that never ran is not waited for.
        let mut streams = process.streams.take().filter(|_| before == Phase::Stopped);
        if key.is_init()
            && let Some(streams) = &mut streams
            && let Some(container) = self.containers.get_mut(&key.container)
        {
            streams.take_over(container.left_outputs.take());
        }
        Ok(Begun {
            machine,
            pid,
            is_member,
            streams,
            before,
        })
    }

    /// Without the container they are closed.
    fn keep_outputs(&mut self, key: &ProcessKey, left: LeftOutputs) {
        if let Some(container) = self.containers.get_mut(&key.container) {
            container.left_outputs.add(left);
        }
    }

    fn take_files(&mut self, container: &str) -> Option<ContainerFiles> {
        self.containers.get_mut(container)?.files.take()
    }

    fn end_delete(&mut self, key: &ProcessKey, failed: Option<Phase>) -> Exit {
        let pid = self.pid(&key.container);
        let Ok(process) = self.process_mut(key) else {
            return Exit::lost();
        };
        let exit = process.exit();
        if let Some(before) = failed {
            process.phase = before;
        } else if key.is_init() {
            if let Some(mut container) = self.containers.remove(&key.container) {
                // Its execs have gone with it, and whoever waits for them is to know.
                for key in container.lose(&key.container, Exit::lost()) {
                    if !key.is_init() {
                        let exit = Exit::lost();
                        self.events.publish(Event::Exit { key, pid, exit });
                    }
                }
            }
        } else if let Some(container) = self.containers.get_mut(&key.container) {
            container.execs.remove(&key.exec);
        }
        let exit = exit.unwrap_or_else(Exit::lost);
        if failed.is_none() {
            let key = key.clone();
            self.events.publish(Event::Deleted { key, pid, exit });
        }
        self.save();
        exit
    }
}
