//! Shutdown: the VM ends, everything on the host is removed, the supervisor may go.
//!
//! ```text
//!   agent powers off ──deadline──► VMM told to stop ──deadline──► VMM killed ─► cgroup, share, state directory removed
//! ```
//!
//! It cannot fail: what cannot be removed is logged.

use std::time::Duration;

use super::{Handle, Life, Machine, Sandbox, TaskError, boot};

/// For the agent to flush file systems and power off.
const POWER_OFF: Duration = Duration::from_secs(4);

/// For the VMM to stop its threads and exit.
const STOP: Duration = Duration::from_secs(2);

/// For the kernel to end a killed VMM.
const KILL: Duration = Duration::from_secs(2);

/// What a call to shut down has to do.
enum Duty {
    /// Containers are there and the caller did not insist.
    Nothing,
    /// Another call is at it.
    Wait,
    End(Option<Machine>),
}

impl Handle {
    /// Removes the sandbox, and returns when it is gone. With containers in it, only if `now`.
    pub(crate) async fn shutdown(&self, now: bool) -> Result<(), TaskError> {
        self.run(shutdown(self.clone(), now)).await
    }
}

async fn shutdown(handle: Handle, now: bool) -> Result<(), TaskError> {
    match handle
        .ask(move |sandbox| sandbox.begin_shutdown(now))
        .await?
    {
        Duty::Nothing => return Ok(()),
        Duty::Wait => {}
        Duty::End(machine) => {
            if let Some(machine) = machine {
                end(&machine).await;
            }
            handle.ask(Sandbox::end_shutdown).await?;
        }
    }
    handle.reaches(|life| *life == Life::Gone).await;
    Ok(())
}

/// Ends the VM, politely first.
async fn end(machine: &Machine) {
    let vm = &machine.vm;
    if vm.end().is_some() {
        return;
    }
    if let Some(agent) = machine.agent_now().await {
        let powered_off = async {
            if let Err(e) = agent.shutdown().await {
                tracing::warn!("the agent did not power off: {e}");
            }
            vm.ended().await
        };
        if tokio::time::timeout(POWER_OFF, powered_off).await.is_ok() {
            return;
        }
        tracing::warn!("the guest did not power off");
    }
    let stopped = async {
        if let Err(e) = vm.control.stop().await {
            tracing::debug!("the VMM did not take the order to stop: {e}");
        }
        vm.ended().await
    };
    if tokio::time::timeout(STOP, stopped).await.is_ok() {
        return;
    }
    vm.kill();
    if tokio::time::timeout(KILL, vm.ended()).await.is_err() {
        tracing::error!("the killed VMM {} does not end", vm.process.pid);
    }
}

impl Sandbox {
    fn begin_shutdown(&mut self, now: bool) -> Duty {
        if self.closing {
            return Duty::Wait;
        }
        if !now && !self.containers.is_empty() {
            return Duty::Nothing;
        }
        tracing::debug!("shutting down");
        self.closing = true;
        Duty::End(self.machine.clone())
    }

    fn end_shutdown(&mut self) {
        for container in self.containers.values_mut() {
            container.lose();
        }
        self.containers.clear();
        let cgroup = self.machine.as_ref().and_then(|m| m.cgroup.as_ref());
        boot::remove_cgroup(cgroup);
        self.share.leave();
        if let Err(e) = self.state.remove() {
            tracing::error!("{:#}", anyhow::Error::from(e));
        }
        tracing::debug!("all is removed");
        self.life.send_replace(Life::Gone);
    }
}
