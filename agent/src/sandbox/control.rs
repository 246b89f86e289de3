//! What can be asked of processes that are there.

use super::{Key, Reply, Sandbox, SandboxError, Window, answer, io, no_process, wrong_state};
use crate::process::State;
use crate::signal;

impl Sandbox {
    pub(super) fn signal(&mut self, key: &Key, number: u32, all: bool) -> Result<(), SandboxError> {
        let container = self.open(&key.container)?;
        let member = container
            .members
            .get_mut(&key.exec)
            .ok_or_else(|| no_process(key))?;
        if all {
            if number == signal::KILL {
                return container.kill().map_err(io("cannot kill the container"));
            }
            for pid in container
                .cgroup
                .pids()
                .map_err(io("cannot list the container's processes"))?
            {
                // A process that has just ended needs no signal.
                let _ = signal::send(pid, number);
            }
            return Ok(());
        }
        // What is no program yet does not know what other signals mean.
        if member.process.state() == State::Creating && number == signal::KILL {
            member.kill_unready();
            return Ok(());
        }
        match member.process.pid() {
            Some(pid) if member.process.is_alive() && member.process.state() != State::Creating => {
                signal::send(pid, number).map_err(|errno| SandboxError::Io {
                    doing: "cannot send the signal",
                    source: errno.into(),
                })
            }
            _ => Err(wrong_state(key, member.process.state())),
        }
    }

    pub(super) fn resize(&mut self, key: &Key, window: Window) -> Result<(), SandboxError> {
        let member = self
            .open(&key.container)?
            .members
            .get_mut(&key.exec)
            .ok_or_else(|| no_process(key))?;
        if let Some(waiting) = &mut member.waiting
            && waiting.plan.terminal
        {
            // Its terminal is made with its start.
            waiting.plan.take(window.size, window.keep_newlines);
            return Ok(());
        }
        let resized = member
            .process
            .resize(window)
            .map_err(|errno| SandboxError::Io {
                doing: "cannot size the terminal",
                source: errno.into(),
            })?;
        if resized {
            Ok(())
        } else {
            Err(SandboxError::State {
                what: format!("process {:?}", key.exec),
                state: "without a terminal",
            })
        }
    }

    pub(super) fn pids(&mut self, id: &str) -> Result<Vec<u32>, SandboxError> {
        let container = self.open(id)?;
        let init = container
            .members
            .get("")
            .and_then(|init| init.process.pid());
        let mut pids = container
            .cgroup
            .pids()
            .map_err(io("cannot list the container's processes"))?;
        pids.sort_by_key(|pid| (Some(*pid) != init, *pid));
        Ok(pids
            .into_iter()
            .filter_map(|pid| u32::try_from(pid).ok())
            .collect())
    }

    pub(super) fn delete_process(&mut self, key: &Key, reply: Reply<()>) {
        match self.begin_delete_process(key) {
            Ok(None) => answer(reply, Ok(())),
            Ok(Some(deleted)) => *deleted = Some(reply),
            Err(error) => answer(reply, Err(error)),
        }
    }

    /// Removes it, or kills it first, when it is being made; then where to leave who waits for its end.
    fn begin_delete_process(
        &mut self,
        key: &Key,
    ) -> Result<Option<&mut Option<Reply<()>>>, SandboxError> {
        let members = &mut self.open(&key.container)?.members;
        let member = members.get(&key.exec).filter(|_| !key.exec.is_empty());
        let state = member.ok_or_else(|| no_process(key))?.process.state();
        match state {
            State::Created | State::Stopped => {
                members.remove(&key.exec);
                Ok(None)
            }
            State::Creating => {
                let member = members.get_mut(&key.exec).ok_or_else(|| no_process(key))?;
                if member.deleted.is_some() {
                    return Err(SandboxError::Busy("its deletion"));
                }
                member.kill_unready();
                Ok(Some(&mut member.deleted))
            }
            state => Err(wrong_state(key, state)),
        }
    }
}
