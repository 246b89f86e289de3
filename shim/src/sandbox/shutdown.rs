//! The end of a sandbox: the VM ends, what it had on the host is removed, the supervisor may go.
//!
//! ```text
//!   shutdown:                      end the VM ──────────────────────────────► cgroup, share, state directory removed
//!   finish:  deliver all output ─► end the VM ─► deliver what still came out ─► cgroup, share removed; the record says "stopped"
//!
//!   end the VM: agent powers off ──deadline──► VMM told to stop ──deadline──► VMM killed
//! ```
//!
//! It cannot fail: what cannot be removed is logged.

use tokio::sync::watch;
use tokio::task::JoinSet;

use super::{Handle, Life, Machine, Sandbox, TaskError};
use crate::deadlines::{EXITS_FOLLOW, KILLED, LEAVE, POWER_OFF, STOP};
use crate::process::{Exit, Process, ProcessKey};
use crate::rootfs::ContainerFiles;
use crate::stdio::ProcessStreams;

/// What a call to shut down has to do.
enum Duty {
    /// Containers are there and the caller did not insist.
    Nothing,
    /// Another call is at it.
    Wait,
    End(Option<Box<Machine>>),
}

/// A process whose container has ended.
struct Leaving {
    /// What is to be waited for first.
    exit: Option<watch::Receiver<Option<Exit>>>,
    streams: ProcessStreams,
}

impl Handle {
    /// Removes the sandbox, and returns when it is gone. With containers in it, only if `now`.
    pub(crate) async fn shutdown(&self, now: bool) -> Result<(), TaskError> {
        self.run(shutdown(self.clone(), now)).await
    }

    /// Ends the sandbox, once the output of what has exited is delivered, and leaves the record of its containers. Returns how the
    /// container that has the sandbox's id ended. Without a container that was made, nothing is left.
    pub(crate) async fn finish(&self) -> Result<Option<Exit>, TaskError> {
        self.run(finish(self.clone())).await
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
            let files = handle.ask(Sandbox::empty).await?;
            let share_left = leave_share(&handle, files).await?;
            handle.ask(move |sandbox| sandbox.leave(share_left)).await?;
        }
    }
    handle.reaches(|life| *life == Life::Gone).await;
    Ok(())
}

async fn finish(handle: Handle) -> Result<Option<Exit>, TaskError> {
    let duty = handle
        .ask(|sandbox| match sandbox.begin_shutdown(true) {
            Duty::End(machine) => Some((machine, sandbox.leaving(false))),
            Duty::Nothing | Duty::Wait => None,
        })
        .await?;
    let Some((machine, leaving)) = duty else {
        handle.reaches(|life| *life == Life::Gone).await;
        return Ok(None);
    };
    deliver(leaving).await;
    if let Some(machine) = machine {
        end(&machine).await;
    }
    let last = handle.ask(|sandbox| sandbox.leaving(true)).await?;
    deliver(last).await;
    let (exit, files) = handle.ask(Sandbox::keep_exited).await?;
    let share_left = leave_share(&handle, files).await?;
    handle.ask(move |sandbox| sandbox.leave(share_left)).await?;
    Ok(exit)
}

/// Takes the sandbox's mounts out of the way; whether that is done. A file system that does not answer keeps nobody from ending.
async fn leave_share(handle: &Handle, files: Vec<ContainerFiles>) -> Result<bool, TaskError> {
    let share = handle.ask(|sandbox| sandbox.share.clone()).await?;
    let left = handle.storage.run("the share", move || {
        for files in files {
            files.remove();
        }
        share.leave();
    });
    match tokio::time::timeout(LEAVE, left).await {
        Ok(Ok(())) => return Ok(true),
        Ok(Err(error)) => tracing::warn!("the share is not left: {error}"),
        Err(_) => tracing::warn!("the share is not left: a file system does not answer"),
    }
    Ok(false)
}

/// Delivers the output of processes that have exited, or are about to.
async fn deliver(leaving: Vec<Leaving>) {
    let mut deliveries = JoinSet::new();
    for Leaving { exit, streams } in leaving {
        deliveries.spawn(async move {
            if let Some(mut exit) = exit {
                let exited = exit.wait_for(Option::is_some);
                if tokio::time::timeout(EXITS_FOLLOW, exited).await.is_err() {
                    tracing::debug!("a process has not exited with its container");
                }
            }
            streams.drain().await;
        });
    }
    while deliveries.join_next().await.is_some() {}
}

/// Ends the VM, politely first.
async fn end(machine: &Machine) {
    let vm = &machine.vm;
    if vm.end().is_some() {
        return;
    }
    let powered_off = async {
        let Some(agent) = machine.agent_now().await else {
            return false;
        };
        if let Err(e) = agent.shutdown().await {
            tracing::warn!("the agent did not power off: {e}");
        }
        vm.ended().await;
        true
    };
    match tokio::time::timeout(POWER_OFF, powered_off).await {
        Ok(true) => return,
        Ok(false) => {}
        Err(_) => tracing::warn!("the guest did not power off"),
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
    if tokio::time::timeout(KILLED, vm.ended()).await.is_err() {
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
        Duty::End(self.machine.clone().map(Box::new))
    }

    /// The streams of containers that are over; of all, if the VM has ended: that their processes have is then told after their output.
    fn leaving(&mut self, vm_ended: bool) -> Vec<Leaving> {
        let containers = self.containers.values_mut();
        containers
            .filter(|container| vm_ended || container.is_over())
            .flat_map(|container| {
                let left = container.left_outputs.take();
                if let Some(streams) = &mut container.init.streams {
                    streams.take_over(left);
                }
                std::iter::once(&mut container.init).chain(container.execs.values_mut())
            })
            .filter_map(|process| {
                Some(Leaving {
                    exit: (!vm_ended).then(|| process.watch_exit()),
                    streams: process.streams.take()?,
                })
            })
            .collect()
    }

    /// Forgets all containers. Returns their files.
    fn empty(&mut self) -> Vec<ContainerFiles> {
        self.lose_processes();
        let containers = std::mem::take(&mut self.containers);
        let files = containers
            .into_values()
            .filter_map(|container| container.files);
        files.collect()
    }

    /// Keeps the record of what has exited only. Returns how the sandbox's own container ended, and the files of all.
    fn keep_exited(&mut self) -> (Option<Exit>, Vec<ContainerFiles>) {
        self.lose_processes();
        // What is not made yet is removed by the operation that makes it.
        self.containers.retain(|_, container| container.is_over());
        let containers = self.containers.values_mut();
        let files = containers.filter_map(|container| container.files.take());
        let files = files.collect();
        let init = self.process(&ProcessKey::init(&self.id)).ok();
        (init.and_then(Process::exit), files)
    }

    /// Gives up all the sandbox has on the host, but for the record of containers that there still are. Where its share is still mounted its
    /// directory stays, for whoever removes it after the supervisor.
    fn leave(&mut self, share_left: bool) {
        let cgroup = self.machine.as_ref().and_then(|m| m.cgroup.as_ref());
        if self.leave_cgroup(cgroup)
            && let Some(machine) = &mut self.machine
        {
            machine.cgroup = None;
        }
        let left = if self.containers.is_empty() && share_left {
            self.state.remove()
        } else {
            self.save();
            self.state.remove_socket()
        };
        if let Err(e) = left {
            tracing::error!("{:#}", anyhow::Error::from(e));
        }
        tracing::debug!("the sandbox has ended");
        self.life.send_replace(Life::Gone);
    }
}
