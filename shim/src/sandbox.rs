//! The one owner of a sandbox: its VM, its agent, its containers.
//!
//! ```text
//!   none ── first create ─► booting ── the agent dials ─► ready ── shutdown ─► gone
//!                              └─────── the VM ends by itself ──► ended: every process exits with 137 ─► gone
//! ```
//!
//! One task owns [`Sandbox`] and runs *turns* on it, one at a time: short, synchronous steps that check a precondition and change
//! the state. An operation (a file each, below) is a straight line of turns with the slow work between them; it is a task
//! of its own, so a caller that goes away leaves nothing half done, and a slow one holds up nobody else. What the guest and
//! the VMM do by themselves comes in as turns too.
//!
//! Ways to fail: [`TaskError`]. When the VM ends, all calls into it fail at once, with the VM's end as the reason.

use std::collections::BTreeMap;
use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::{Mutex, mpsc, oneshot, watch};

use crate::agent::{Agent, AgentError};
use crate::cgroup::{Cgroup, Home};
use crate::config::Config;
use crate::container::Container;
use crate::deadlines::END_FOLLOWS;
use crate::events::{Event, Events, Subscription};
use crate::guest::budget::{LogBudget, Verdict};
use crate::guest::events::Carried;
use crate::hooks::{HookState, Hooks};
use crate::process::{Exit, Phase, Process, ProcessKey};
use crate::rootfs::{ContainerFiles, Share};
use crate::spec::{Extent, HostPart, VmSize};
use crate::state::{ProcessRef, Record, StateDir, Status, now_ns};
use crate::storage::Storage;
use crate::supervise::Face;
use crate::vm::{EndReason, Vm, VmEnd};
use standstill::{AgentCalls, Standstill};

mod boot;
mod clock;
mod create;
mod delete;
mod error;
mod exec;
mod pause;
mod query;
mod shutdown;
mod standstill;
mod start;
mod undo;
mod update;

pub(crate) use boot::BootError;
pub(crate) use create::{CreateRequest, StandIn};
pub(crate) use delete::Deleted;
pub(crate) use error::TaskError;
pub(crate) use exec::ExecRequest;
pub(crate) use query::ProcessState;

/// A step on the owner's state.
type Turn = Box<dyn FnOnce(&mut Sandbox) + Send>;

/// See the module. Only turns touch it.
#[derive(Debug)]
pub(crate) struct Sandbox {
    id: String,
    config: Config,
    state: StateDir,
    share: Share,
    machine: Option<Machine>,
    containers: BTreeMap<String, Container>,
    created_ns: u64,
    bundle: PathBuf,
    this: ProcessRef,
    reported_pid: ReportedPid,
    /// The supervisor's cgroup, while it is in that of its container.
    home: Option<Home>,
    handle: Handle,
    closing: bool,
    life: watch::Sender<Life>,
    events: Events,
    /// Lines about memory, which a guest can run out of at will.
    oom_lines: LogBudget,
}

/// Whose pid is reported for the processes of a sandbox, which have none on this host.
#[derive(Clone, Debug)]
pub(crate) enum ReportedPid {
    /// Lives as long as the VM, in the pod's network namespace: for callers that look at a process.
    Vmm,
    /// Ends with the container's exit status: for callers that wait for a child.
    Supervisor(Face),
}

/// The VM, once there is one.
#[derive(Clone, Debug)]
struct Machine {
    vm: Vm,
    /// What it was made with, and how far it can go.
    size: VmSize,
    /// How far it has gone. Held while it changes, so that it does so once at a time.
    extent: Arc<Mutex<Extent>>,
    /// See [`ReportedPid`].
    pid: i32,
    cgroup: Option<Cgroup>,
    standstill: Standstill,
    /// None while it boots.
    agent: watch::Receiver<Option<Result<Agent, Arc<BootError>>>>,
}

/// What the outside may know of the owner without asking.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Life {
    /// There is no container.
    Idle,
    /// There are containers.
    Busy,
    /// There are containers, and the sandbox's own, or without one all of them, have exited.
    Over,
    /// All is removed.
    Gone,
}

/// To ask the owner by; clones ask the same.
#[derive(Clone, Debug)]
pub(crate) struct Handle {
    turns: mpsc::UnboundedSender<Turn>,
    life: watch::Receiver<Life>,
    events: Events,
    /// For all that a file system can hold up.
    storage: Storage,
}

/// What a sandbox is made of before its first container.
#[derive(Debug)]
pub(crate) struct Origin {
    pub(crate) id: String,
    pub(crate) config: Config,
    pub(crate) state: StateDir,
    pub(crate) share: Share,
    /// The supervisor's process.
    pub(crate) this: ProcessRef,
    pub(crate) reported_pid: ReportedPid,
}

/// Starts the owner of a new sandbox.
pub(crate) fn start(origin: Origin) -> Handle {
    let (turns, mut mailbox) = mpsc::unbounded_channel::<Turn>();
    let (life, watched) = watch::channel(Life::Idle);
    let events = Events::default();
    let handle = Handle {
        turns,
        life: watched,
        events: events.clone(),
        storage: Storage::default(),
    };
    let mut sandbox = Sandbox {
        id: origin.id,
        config: origin.config,
        state: origin.state,
        share: origin.share,
        machine: None,
        containers: BTreeMap::new(),
        created_ns: now_ns(),
        bundle: PathBuf::new(),
        this: origin.this,
        reported_pid: origin.reported_pid,
        home: None,
        handle: handle.clone(),
        closing: false,
        life,
        events,
        oom_lines: LogBudget::new(),
    };
    sandbox.save();
    tokio::spawn(async move {
        while let Some(turn) = mailbox.recv().await {
            turn(&mut sandbox);
        }
    });
    handle
}

impl Handle {
    /// Runs `turn` on the owner's state.
    async fn ask<T: Send + 'static>(
        &self,
        turn: impl FnOnce(&mut Sandbox) -> T + Send + 'static,
    ) -> Result<T, TaskError> {
        let (answer, answered) = oneshot::channel();
        let turn: Turn = Box::new(move |sandbox| {
            // The asker may have been cancelled.
            let _ = answer.send(turn(sandbox));
        });
        self.turns.send(turn).map_err(|_| TaskError::Closing)?;
        answered.await.map_err(|_| TaskError::Closing)
    }

    /// Runs `turn` some time soon.
    fn tell(&self, turn: impl FnOnce(&mut Sandbox) + Send + 'static) {
        if self.turns.send(Box::new(turn)).is_err() {
            tracing::debug!("news came after the sandbox had gone");
        }
    }

    /// Runs an operation to its end, whether or not its caller stays.
    async fn run<T: Send + 'static>(
        &self,
        operation: impl Future<Output = Result<T, TaskError>> + Send + 'static,
    ) -> Result<T, TaskError> {
        tokio::spawn(operation)
            .await
            .unwrap_or(Err(TaskError::Closing))
    }

    /// Takes a container's files away from the guest.
    async fn remove_files(&self, files: ContainerFiles) {
        let removed = self.storage.run("a container", move || files.remove());
        if let Err(error) = removed.await {
            tracing::warn!("what a container was made of is not removed: {error}");
        }
    }

    /// What happens from now on.
    pub(crate) fn events(&self) -> Subscription {
        self.events.subscribe()
    }

    /// Waits until `wanted` is so.
    pub(crate) async fn reaches(&self, wanted: impl FnMut(&Life) -> bool) {
        let mut life = self.life.clone();
        // The sender goes away with the owner, which is as gone as can be.
        let _ = life.wait_for(wanted).await;
    }
}

impl Machine {
    /// Waits for the agent, and lets the VM run for as long as the result is kept.
    async fn agent(&self) -> Result<AgentCalls, TaskError> {
        let mut agent = self.agent.clone();
        let agent = match agent.wait_for(Option::is_some).await.as_deref() {
            Ok(Some(Ok(agent))) => agent.clone(),
            Ok(Some(Err(error))) => return Err(TaskError::Boot(error.clone())),
            _ => return Err(TaskError::Closing),
        };
        Ok(self.standstill.calls(agent).await)
    }

    /// The same, if the agent is there.
    async fn agent_now(&self) -> Option<AgentCalls> {
        let agent = match &*self.agent.borrow() {
            Some(Ok(agent)) => agent.clone(),
            _ => return None,
        };
        Some(self.standstill.calls(agent).await)
    }

    /// A lost agent's error becomes the VM's end, which follows it closely.
    async fn explain(&self, error: AgentError) -> TaskError {
        if matches!(error, AgentError::Lost)
            && let Ok(end) = tokio::time::timeout(END_FOLLOWS, self.vm.ended()).await
        {
            return TaskError::VmEnded(end);
        }
        error.into()
    }
}

impl Sandbox {
    fn container(&self, id: &str) -> Result<&Container, TaskError> {
        self.containers
            .get(id)
            .ok_or_else(|| TaskError::NotFound(ProcessKey::init(id)))
    }

    /// Where a process is in its life.
    fn phase(&self, key: &ProcessKey) -> Result<Phase, TaskError> {
        Ok(self.container(&key.container)?.phase(self.process(key)?))
    }

    fn process(&self, key: &ProcessKey) -> Result<&Process, TaskError> {
        self.container(&key.container)?
            .process(key)
            .ok_or_else(|| TaskError::NotFound(key.clone()))
    }

    fn process_mut(&mut self, key: &ProcessKey) -> Result<&mut Process, TaskError> {
        self.containers
            .get_mut(&key.container)
            .and_then(|container| container.process_mut(key))
            .ok_or_else(|| TaskError::NotFound(key.clone()))
    }

    /// The VM of a sandbox that has processes.
    fn machine(&self) -> Result<&Machine, TaskError> {
        self.machine.as_ref().ok_or(TaskError::Closing)
    }

    /// A machine that can be asked something for `key`, which must be in one of `phases`.
    fn machine_for(&self, key: &ProcessKey, phases: &[Phase]) -> Result<Machine, TaskError> {
        let phase = self.phase(key)?;
        if !phases.contains(&phase) {
            return Err(TaskError::Phase {
                key: key.clone(),
                phase,
            });
        }
        let machine = self.machine()?;
        match machine.vm.end() {
            Some(end) => Err(TaskError::VmEnded(end)),
            None => Ok(machine.clone()),
        }
    }

    /// The hooks of a container, with the state to give them; an exec has none.
    fn hooks(&self, key: &ProcessKey, status: Status) -> Result<(Hooks, HookState), TaskError> {
        let container = self.container(&key.container)?;
        let pid = self.pid(&key.container);
        let (hooks, state) = container.hooks(&key.container, status, pid);
        Ok((
            if key.is_init() {
                hooks
            } else {
                Hooks::default()
            },
            state,
        ))
    }

    /// The agent's news of an exit.
    fn on_exit(&mut self, key: &ProcessKey, exit: Exit, carried: Carried) {
        let pid = self.pid(&key.container);
        // Whatever else a guest tells of is not worth a line.
        let Ok(process) = self.process_mut(key) else {
            return;
        };
        let starting = process.phase == Phase::Starting;
        if let Some(streams) = &mut process.streams {
            streams.owe(carried);
        }
        if !process.stop(exit) {
            return;
        }
        tracing::info!(process = %key, status = exit.status, "exited");
        let key = key.clone();
        if starting {
            // The answer to its start comes later.
            let key = key.clone();
            self.events.publish(Event::Started { key, pid });
        }
        self.events.publish(Event::Exit { key, pid, exit });
        self.save();
    }

    /// The pid that was reported for every process of a container.
    fn pid(&self, container: &str) -> i32 {
        let container = self.containers.get(container);
        container
            .and_then(|container| container.stand_in)
            .or(self.machine.as_ref().map(|machine| machine.pid))
            .unwrap_or(0)
    }

    /// The agent's news that a container's program is ready; of one that was not to say so it is nothing.
    fn on_ready(&mut self, container: &str) {
        let container = self.containers.get(container);
        if let Some(ready) = container.and_then(|container| container.ready.as_ref()) {
            ready.send_replace(true);
        }
    }

    /// The agent's news that the kernel killed a process of a container for memory.
    fn on_oom(&mut self, container: String) {
        if !self.containers.contains_key(&container) {
            return;
        }
        if let Verdict::Write { left_out } = self.oom_lines.line() {
            tracing::warn!(container, left_out, "out of memory");
        }
        self.events.publish(Event::Oom { container });
    }

    /// A process that was to be made, and is not there after all.
    fn forget(&mut self, key: &ProcessKey) {
        if key.is_init() {
            self.containers.remove(&key.container);
        } else if let Some(container) = self.containers.get_mut(&key.container) {
            container.execs.remove(&key.exec);
        }
        self.save();
    }

    /// The VM has ended: so has every process.
    fn on_vm_end(&mut self, end: &VmEnd) {
        if self.closing {
            // Who closes it says so of the processes, when their output is delivered.
            return;
        }
        tracing::error!("the VM ended: {end}");
        self.lose_processes();
        self.save();
    }

    /// Every process that has not exited has gone with the VM.
    fn lose_processes(&mut self) {
        let exit = Exit::lost();
        let own = self.machine.as_ref().map_or(0, |machine| machine.pid);
        for (id, container) in &mut self.containers {
            let pid = container.stand_in.unwrap_or(own);
            for key in container.lose(id, exit) {
                self.events.publish(Event::Exit { key, pid, exit });
            }
        }
    }

    /// Writes the record. Its loss would only make a later clean-up poorer, so it does not fail an operation.
    fn save(&self) {
        if *self.life.borrow() == Life::Gone {
            return;
        }
        if let Err(e) = self.state.write(&self.record()) {
            tracing::error!("{:#}", anyhow::Error::from(e));
        }
        let life = if self.containers.is_empty() {
            Life::Idle
        } else if self.is_over() {
            Life::Over
        } else {
            Life::Busy
        };
        self.life.send_if_modified(|now| {
            let change = *now != life;
            if change {
                *now = life;
            }
            change
        });
    }

    /// Whether the container is over whose sandbox it is; without one, whether all are.
    fn is_over(&self) -> bool {
        match self.containers.get(&self.id) {
            Some(own) => own.is_over(),
            None => self.containers.values().all(Container::is_over),
        }
    }

    fn record(&self) -> Record {
        let machine = self.machine.as_ref();
        let by_itself = |end: Arc<VmEnd>| {
            let expected = matches!(end.reason, EndReason::PoweredOff | EndReason::Stopped);
            (!expected).then(|| end.to_string())
        };
        Record {
            id: self.id.clone(),
            bundle: self.bundle.clone(),
            created_ns: self.created_ns,
            sandbox: None,
            supervisor: self.this,
            vmm: machine.map(|machine| machine.vm.process),
            pid: machine.map(|machine| machine.pid),
            cgroup: machine
                .and_then(|machine| machine.cgroup.as_ref())
                .map(|cgroup| cgroup.named().clone()),
            containers: self
                .containers
                .iter()
                .map(|(id, container)| container.record(id))
                .collect(),
            ended: machine.and_then(|m| m.vm.end()).and_then(by_itself),
        }
    }
}

#[cfg(test)]
mod tests;
