//! What can be asked of processes that are there.

use super::{Key, Sandbox, SandboxError, io, no_process, wrong_state};
use crate::plan::WindowSize;
use crate::signal;

const SIGKILL: u32 = 9;

impl Sandbox {
    pub(super) fn signal(&mut self, key: &Key, number: u32, all: bool) -> Result<(), SandboxError> {
        let container = self.open(&key.container)?;
        let member = container
            .members
            .get(&key.exec)
            .ok_or_else(|| no_process(key))?;
        if all {
            if number == SIGKILL {
                return container
                    .cgroup
                    .kill()
                    .map_err(io("cannot kill the container"));
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
        match member.process.pid() {
            Some(pid) if member.process.is_alive() => {
                signal::send(pid, number).map_err(|errno| SandboxError::Io {
                    doing: "cannot send the signal",
                    source: errno.into(),
                })
            }
            _ => Err(wrong_state(key, member.process.state())),
        }
    }

    pub(super) fn resize(&mut self, key: &Key, size: WindowSize) -> Result<(), SandboxError> {
        let member = self
            .open(&key.container)?
            .members
            .get(&key.exec)
            .ok_or_else(|| no_process(key))?;
        let resized = member
            .process
            .resize(size)
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

    pub(super) fn delete_process(&mut self, key: &Key) -> Result<(), SandboxError> {
        let container = self.open(&key.container)?;
        let member = container
            .members
            .get(&key.exec)
            .filter(|_| !key.exec.is_empty())
            .ok_or_else(|| no_process(key))?;
        if !member.process.is_deletable() {
            return Err(wrong_state(key, member.process.state()));
        }
        container.members.remove(&key.exec);
        Ok(())
    }
}
