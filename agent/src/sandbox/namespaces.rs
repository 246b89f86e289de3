//! Namespaces that a new container is to join.

use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;

use rustix::fs::{Mode, OFlags, open};

use super::{Sandbox, SandboxError};
use crate::plan::{self, Entry, Plan};

impl Sandbox {
    /// Opens the namespaces that are to be joined, and has the child take them from there: by the time that it would look the path up, the process
    /// that it names may have ended, and its id be another's. Here it cannot be, as long as it has not been reaped.
    pub(super) fn hold_namespaces(&self, plan: &mut Plan) -> Result<Vec<OwnedFd>, SandboxError> {
        let Entry::Create(container) = &mut plan.entry else {
            return Ok(Vec::new());
        };
        let mut held = Vec::new();
        for (_, path) in &mut container.join {
            if let Some(pid) = plan::process_of(path)
                && !self.has_process(pid)
            {
                return Err(SandboxError::NoNamespace(path.clone()));
            }
            // Without close-on-exec: the child has it under the same number.
            let namespace = open(&*path, OFlags::RDONLY | OFlags::NONBLOCK, Mode::empty())
                .map_err(|_| SandboxError::NoNamespace(path.clone()))?;
            *path = PathBuf::from(format!("/proc/self/fd/{}", namespace.as_raw_fd()));
            held.push(namespace);
        }
        Ok(held)
    }

    /// Whether a process of one of the containers has this id.
    fn has_process(&self, pid: i32) -> bool {
        let mut members = self.containers.values().flat_map(|c| c.members.values());
        members.any(|member| member.process.is_alive() && member.process.pid() == Some(pid))
    }
}
