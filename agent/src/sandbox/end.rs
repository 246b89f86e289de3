//! From an exit, or a request to delete, to nothing left.

use std::io;
use std::time::{Duration, Instant};

use super::pause::{check_thawed, thaw};
use super::{Key, Reply, Sandbox, SandboxError, answer, send, wrong_state};
use crate::container::{Ending, Then};
use crate::log::warn;
use crate::process::{Exited, State};
use crate::reaper::{self, Exit};

/// How long killed processes may take to be gone.
const ENDING_MAX: Duration = Duration::from_secs(10);

impl Sandbox {
    pub(super) fn reap(&mut self) {
        while let Some(Exit { pid, status }) = reaper::next() {
            // Others are stages of children, and orphans.
            if let Some(key) = self.by_pid.remove(&pid) {
                self.exited(&key, pid, status);
            }
        }
        self.finish_endings();
    }

    pub(super) fn exited(&mut self, key: &Key, pid: i32, status: u32) {
        self.tell_oom(&key.container, true);
        let Some(container) = self.containers.get_mut(&key.container) else {
            return;
        };
        if key.exec.is_empty() {
            thaw(&key.container, container);
        }
        // Orphans of a container that shares its pid namespace live on without their init.
        if key.exec.is_empty()
            && !container.has_own_pids
            && let Err(error) = container.cgroup.kill()
        {
            warn!("{}: cannot kill the rest: {error}", key.container);
        }
        let Some(member) = container.members.get_mut(&key.exec) else {
            return;
        };
        if member.process.exited(status) == Exited::Publish {
            self.publish_exit(key, pid, status);
        }
    }

    pub(super) fn delete_container(&mut self, id: &str, reply: Reply<()>) {
        let deletable = self.open(id).and_then(|container| {
            check_thawed(id, container)?;
            match container.init_state() {
                State::Created | State::Stopped => Ok(()),
                init => Err(wrong_state(&Key::init(id), init)),
            }
        });
        match deletable {
            Ok(()) => self.end(id, Then::Deleted(reply)),
            Err(error) => answer(reply, Err(error)),
        }
    }

    /// Kills what is left; the rest follows as processes end.
    pub(super) fn end(&mut self, id: &str, then: Then) {
        let Some(container) = self.containers.get_mut(id) else {
            return;
        };
        if let Err(error) = container.cgroup.kill() {
            warn!("{id}: cannot kill: {error}");
        }
        let deadline = Instant::now() + ENDING_MAX;
        container.ending = Some(Ending { then, deadline });
        self.finish_endings();
    }

    pub(super) fn finish_endings(&mut self) {
        let ending = self
            .containers
            .iter()
            .filter(|(_, container)| container.ending.is_some());
        let ids: Vec<String> = ending.map(|(id, _)| id.clone()).collect();
        for id in ids {
            self.finish_ending(&id);
        }
    }

    pub(super) fn finish_ending(&mut self, id: &str) {
        let Some(container) = self.containers.get_mut(id) else {
            return;
        };
        let Some(Ending { then, deadline }) = container.ending.take() else {
            return;
        };
        let removed = if container.is_pending() {
            Err(io::ErrorKind::ResourceBusy.into())
        } else {
            container.cgroup.remove()
        };
        let late = Instant::now() >= deadline;
        match removed {
            Ok(()) => {
                self.containers.remove(id);
                self.oom.remove(id);
                tell(then, None);
            }
            Err(source) if late => tell(then, Some(source)),
            Err(_) => container.ending = Some(Ending { then, deadline }),
        }
    }
}

/// `left`: why the cgroup is still there.
fn tell(then: Then, left: Option<io::Error>) {
    match (then, left) {
        (Then::Deleted(reply), None) => answer(reply, Ok(())),
        (Then::Deleted(reply), Some(source)) => {
            let doing = "cannot remove the cgroup";
            answer(reply, Err(SandboxError::Io { doing, source }));
        }
        (Then::Failed(reply, error), _) => send(reply, Err(error)),
    }
}
