//! Start: the program of a created process is executed.

use nix::libc::SIGKILL;

use super::{Handle, Machine, ReportedPid, Sandbox, TaskError};
use crate::events::Event;
use crate::hooks;
use crate::network;
use crate::process::{Phase, ProcessKey};
use crate::state::Status;
use crate::stdio::{ProcessStreams, Window};

impl Handle {
    /// Starts a created process. Returns the pid to report for it.
    pub(crate) async fn start(&self, key: ProcessKey) -> Result<i32, TaskError> {
        self.run(start(self.clone(), key)).await
    }
}

async fn start(handle: Handle, key: ProcessKey) -> Result<i32, TaskError> {
    let (machine, pid, window) = {
        let key = key.clone();
        handle
            .ask(move |sandbox| sandbox.begin_start(&key))
            .await??
    };
    let agent = machine.agent().await?;
    if let Some(window) = window {
        let size = (window.columns.into(), window.rows.into());
        // A terminal that is not quite right is no reason not to start.
        if let Err(error) = agent.resize_pty(&key, size, window.keep_newlines).await {
            tracing::debug!(process = %key, %error, "its terminal is not as it is shown");
        }
    }
    let (started, phase) = match agent.start(&key).await {
        Ok(_guest_pid) => (Ok(()), Phase::Running),
        Err(e) => {
            let phase = if e.is_open() {
                Phase::Unknown
            } else {
                Phase::Created
            };
            (Err(machine.explain(e).await), phase)
        }
    };
    let (hooks, state) = {
        let key = key.clone();
        let ended = handle.ask(move |sandbox| {
            sandbox.end_start(&key, phase);
            sandbox.hooks(&key, Status::Running)
        });
        ended.await??
    };
    started?;
    if !hooks.poststart_must_succeed {
        hooks::run_anyway(&hooks.poststart, &state).await;
        return Ok(pid);
    }
    if let Err(error) = hooks::run(&handle.storage, &hooks.poststart, &state).await {
        stop(&handle, key).await;
        return Err(error.into());
    }
    Ok(pid)
}

/// Ends a container one of whose hooks asks for it. That it is deleted, and the poststop hooks are run, is its caller's.
async fn stop(handle: &Handle, key: ProcessKey) {
    let number = SIGKILL.unsigned_abs();
    if let Err(error) = handle.kill(key.clone(), number, false).await {
        tracing::debug!(process = %key, %error, "it has ended by itself");
    }
    if let Err(error) = handle.wait(key.clone()).await {
        tracing::debug!(process = %key, %error, "it is being removed");
    }
}

impl Sandbox {
    /// With the VM and the pid to report comes what the program is to find its terminal like.
    fn begin_start(
        &mut self,
        key: &ProcessKey,
    ) -> Result<(Machine, i32, Option<Window>), TaskError> {
        let machine = self.machine_for(key, &[Phase::Created])?;
        let pid = self.pid(&key.container);
        if matches!(self.reported_pid, ReportedPid::Supervisor(_)) && key.is_init() {
            // Engines may set up a network between create and start.
            network::check(pid)?;
        }
        let process = self.process_mut(key)?;
        process.phase = Phase::Starting;
        let window = process.streams.as_ref().and_then(ProcessStreams::window);
        Ok((
            machine,
            pid,
            window.filter(|window| *window != Window::default()),
        ))
    }

    /// Its exit may have come first; it then stays stopped. After a failed start it can be deleted, and when it is not known whether it has
    /// started, too.
    fn end_start(&mut self, key: &ProcessKey, phase: Phase) {
        let pid = self.pid(&key.container);
        if let Ok(process) = self.process_mut(key)
            && process.phase == Phase::Starting
        {
            process.phase = phase;
            if phase == Phase::Running {
                let key = key.clone();
                self.events.publish(Event::Started { key, pid });
            }
        }
        self.save();
    }
}
