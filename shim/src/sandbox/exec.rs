//! Exec: another process in a container, created here and started like the first.
//!
//! It does not outlive the process that lent it its streams: nobody else could end it.

use nix::libc::SIGKILL;

use super::{Handle, Machine, Sandbox, TaskError};
use crate::container::EXECS_MAX;
use crate::events::Event;
use crate::process::{Phase, Process, ProcessKey};
use crate::spec;
use crate::stdio::{Ids, Lender, Outside, ProcessStreams, Stdio, StdioError};

/// What is asked for.
#[derive(Debug)]
pub(crate) struct ExecRequest {
    pub(crate) key: ProcessKey,
    /// An OCI `process` object, JSON.
    pub(crate) process: Vec<u8>,
    /// Below the container's own; None: where its init process is.
    pub(crate) cgroup: Option<String>,
    pub(crate) stdio: Stdio,
}

impl Handle {
    /// Makes an exec. On an error nothing of it is left.
    pub(crate) async fn exec(&self, request: ExecRequest) -> Result<(), TaskError> {
        self.run(exec(self.clone(), request)).await
    }
}

async fn exec(handle: Handle, request: ExecRequest) -> Result<(), TaskError> {
    let (process, terminal) = spec::exec_process(&request.process)?;
    let stdio = Stdio {
        terminal,
        ..request.stdio
    };
    let key = request.key;
    let (machine, ids) = {
        let (key, stdio) = (key.clone(), stdio.clone());
        handle
            .ask(move |sandbox| sandbox.begin_exec(&key, stdio))
            .await??
    };
    let outside = Outside::open(&handle.storage, &stdio).await;
    let made = match outside {
        Ok(outside) => {
            let spec = (process, request.cgroup);
            make(&machine, ids, &key, spec, outside).await
        }
        Err(error) => Err(StdioError::from(error).into()),
    };
    let is_open = made.as_ref().is_err_and(TaskError::is_open);
    let ended = {
        let key = key.clone();
        handle.ask(move |sandbox| sandbox.end_exec(&key, made))
    };
    let ended = ended.await?;
    if is_open {
        handle.undo_making(machine, key, None);
    }
    ended
}

async fn make(
    machine: &Machine,
    ids: Ids,
    key: &ProcessKey,
    (process, cgroup): (Vec<u8>, Option<String>),
    outside: Outside,
) -> Result<ProcessStreams, TaskError> {
    let agent = machine.agent().await?;
    let streams = ProcessStreams::open(&machine.vm.control, ids, outside).await?;
    match agent.create_process(key, process, cgroup, ids.into()).await {
        Ok(()) => Ok(streams),
        Err(e) => Err(machine.explain(e).await),
    }
}

/// Kills the exec, should it live, when `lender` has gone.
async fn end_with(handle: Handle, key: ProcessKey, lender: Lender) {
    if let Err(e) = lender.gone().await {
        return tracing::warn!(process = %key, "its caller cannot be watched: {e}");
    }
    match handle
        .kill(key.clone(), SIGKILL.unsigned_abs(), false)
        .await
    {
        Ok(()) => tracing::info!(process = %key, "killed: its caller is gone"),
        Err(e) => tracing::debug!(process = %key, "it has ended with its caller: {e}"),
    }
}

impl Sandbox {
    fn begin_exec(&mut self, key: &ProcessKey, stdio: Stdio) -> Result<(Machine, Ids), TaskError> {
        let init = ProcessKey::init(&key.container);
        let machine = self.machine_for(&init, &[Phase::Created, Phase::Running])?;
        let ids = Ids::random(&stdio)?;
        let Some(container) = self.containers.get_mut(&key.container) else {
            return Err(TaskError::NotFound(init));
        };
        // An exec without an id would be the init process.
        if key.is_init() || container.execs.contains_key(&key.exec) {
            return Err(TaskError::Exists(key.clone()));
        }
        if container.execs.len() >= EXECS_MAX {
            return Err(TaskError::Limit {
                what: init,
                max: EXECS_MAX,
                things: "execs",
            });
        }
        container
            .execs
            .insert(key.exec.clone(), Process::new(stdio));
        Ok((machine, ids))
    }

    fn end_exec(
        &mut self,
        key: &ProcessKey,
        made: Result<ProcessStreams, TaskError>,
    ) -> Result<(), TaskError> {
        let mut streams = match made {
            Ok(streams) => streams,
            Err(error) if error.is_open() => {
                // Its container may have gone, and the exec with it.
                if let Ok(process) = self.process_mut(key) {
                    process.phase = Phase::Undoing;
                }
                return Err(error);
            }
            Err(error) => {
                if let Some(container) = self.containers.get_mut(&key.container) {
                    container.execs.remove(&key.exec);
                }
                return Err(error);
            }
        };
        let process = self.process_mut(key)?;
        if process.phase == Phase::Creating {
            process.phase = Phase::Created;
        } else {
            streams.end_input();
        }
        if let Some(lender) = streams.lender().and_then(|lender| lender.try_clone().ok()) {
            tokio::spawn(end_with(self.handle.clone(), key.clone(), lender));
        }
        let process = self.process_mut(key)?;
        process.streams = Some(streams);
        let key = key.clone();
        self.events.publish(Event::ExecAdded { key });
        Ok(())
    }
}
