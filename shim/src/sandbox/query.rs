//! Everything that does not change a process's phase: state, wait, signals, terminal size, end of input, processes, statistics.

use std::path::PathBuf;

use agent_api::agent::{ProcessInfo, StatsResponse};
use nix::libc::SIGKILL;
use tokio::sync::watch;

use super::{Handle, Sandbox, TaskError};
use crate::agent::AgentError;
use crate::process::{Exit, Phase, ProcessKey};
use crate::stdio::Stdio;

/// What is known of a process.
#[derive(Clone, Debug)]
pub(crate) struct ProcessState {
    pub(crate) bundle: PathBuf,
    /// The pid to report.
    pub(crate) pid: i32,
    pub(crate) phase: Phase,
    pub(crate) stdio: Stdio,
    pub(crate) exit: Option<Exit>,
}

/// Phases in which a process can be spoken to.
pub(super) const ALIVE: [Phase; 7] = [
    Phase::Created,
    Phase::Starting,
    Phase::Unknown,
    Phase::Running,
    Phase::Pausing,
    Phase::Paused,
    Phase::Resuming,
];

impl Handle {
    /// What a process is doing.
    pub(crate) async fn state(&self, key: ProcessKey) -> Result<ProcessState, TaskError> {
        self.ask(move |sandbox| sandbox.state_of(&key)).await?
    }

    /// Waits for the exit of a process.
    pub(crate) async fn wait(&self, key: ProcessKey) -> Result<Exit, TaskError> {
        let mut exit = self
            .ask(move |sandbox| Ok::<_, TaskError>(sandbox.process(&key)?.watch_exit()))
            .await??;
        match exit.wait_for(Option::is_some).await.as_deref() {
            Ok(Some(exit)) => Ok(*exit),
            // Deleted before it was ever started.
            _ => Err(TaskError::Closing),
        }
    }

    /// Waits until the program of a container has said that it is ready.
    pub(crate) async fn ready(&self, container: String) -> Result<(), TaskError> {
        let key = ProcessKey::init(&container);
        let (mut ready, mut exit) = {
            let key = key.clone();
            self.ask(move |sandbox| {
                let container = sandbox.container(&container)?;
                let ready = container.ready.as_ref().map(watch::Sender::subscribe);
                let ready = ready.ok_or_else(|| TaskError::NoNotifySocket(key.clone()))?;
                Ok::<_, TaskError>((ready, container.init.watch_exit()))
            })
            .await??
        };
        let over = TaskError::Phase {
            key,
            phase: Phase::Stopped,
        };
        tokio::select! {
            biased;
            is_ready = ready.wait_for(|ready| *ready) => is_ready.map(drop).map_err(|_| over),
            _ = exit.wait_for(Option::is_some) => Err(over),
        }
    }

    /// Sends a signal to a process, or to all of its container's.
    pub(crate) async fn kill(
        &self,
        key: ProcessKey,
        signal: u32,
        all: bool,
    ) -> Result<(), TaskError> {
        let machine = {
            let key = key.clone();
            self.ask(move |sandbox| sandbox.machine_for(&key, &ALIVE))
                .await??
        };
        let agent = machine.agent().await?;
        match agent.signal(&key, signal, all).await {
            Ok(()) if signal == SIGKILL.unsigned_abs() => {
                // Before `agent` is let go: a paused VM could not tell of the end.
                self.ask(move |sandbox| {
                    if let Ok(process) = sandbox.process_mut(&key) {
                        process.killed = true;
                    }
                })
                .await
            }
            Ok(()) => Ok(()),
            // Nothing else is left that could end a container whose guest hangs.
            Err(AgentError::TimedOut) if key.is_init() && signal == SIGKILL.unsigned_abs() => {
                machine
                    .vm
                    .give_up("the guest did not take a SIGKILL in time");
                Ok(())
            }
            Err(e) => Err(machine.explain(e).await),
        }
    }

    /// What runs in a container, by the guest's word; none when it has stopped.
    pub(crate) async fn processes(&self, container: String) -> Result<Vec<ProcessInfo>, TaskError> {
        let key = ProcessKey::init(&container);
        let machine = {
            let key = key.clone();
            self.ask(move |sandbox| match sandbox.phase(&key)? {
                Phase::Stopped => Ok(None),
                _ => sandbox.machine_for(&key, &ALIVE).map(Some),
            })
            .await??
        };
        let Some(machine) = machine else {
            return Ok(Vec::new());
        };
        let agent = machine.agent().await?;
        match agent.processes(&key).await {
            Ok(processes) => Ok(processes),
            Err(e) => Err(machine.explain(e).await),
        }
    }

    /// The files of a container's cgroup, by the guest's word.
    pub(crate) async fn stats(&self, container: String) -> Result<StatsResponse, TaskError> {
        let key = ProcessKey::init(&container);
        let machine = {
            let key = key.clone();
            self.ask(move |sandbox| sandbox.machine_for(&key, &ALIVE))
                .await??
        };
        let agent = machine.agent().await?;
        match agent.stats(&key).await {
            Ok(files) => Ok(files),
            Err(e) => Err(machine.explain(e).await),
        }
    }

    /// Sets the size of a process's terminal, in characters.
    pub(crate) async fn resize(
        &self,
        key: ProcessKey,
        width: u32,
        height: u32,
    ) -> Result<(), TaskError> {
        let machine = {
            let key = key.clone();
            self.ask(move |sandbox| sandbox.machine_for(&key, &ALIVE))
                .await??
        };
        let agent = machine.agent().await?;
        match agent.resize_pty(&key, (width, height), false).await {
            Ok(()) => Ok(()),
            Err(e) => Err(machine.explain(e).await),
        }
    }

    /// Ends a process's input after what has been written to it.
    pub(crate) async fn close_stdin(&self, key: ProcessKey) -> Result<(), TaskError> {
        self.ask(move |sandbox| {
            let process = sandbox.process_mut(&key)?;
            if let Some(streams) = &mut process.streams {
                streams.close_stdin();
            }
            Ok(())
        })
        .await?
    }

    /// The pid that is reported for a container.
    pub(crate) async fn pid(&self, container: String) -> Result<i32, TaskError> {
        let state = self.state(ProcessKey::init(&container)).await?;
        Ok(state.pid)
    }
}

impl Sandbox {
    fn state_of(&self, key: &ProcessKey) -> Result<ProcessState, TaskError> {
        let process = self.process(key)?;
        Ok(ProcessState {
            bundle: self.container(&key.container)?.bundle.clone(),
            pid: self.pid(&key.container),
            phase: self.phase(key)?,
            stdio: process.stdio.clone(),
            exit: process.exit(),
        })
    }
}
