//! From an exit, or a request to delete, to nothing left.

use std::io;
use std::time::{Duration, Instant};

use super::pause::{check_thawed, thaw};
use super::{Key, News, Reply, Sandbox, SandboxError, answer, send, wrong_state};
use crate::container::{Ending, Then, Watch};
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
        let publish = member.process.exited(status) == Exited::Publish;
        let failed = member.failed.take();
        if publish {
            self.publish_exit(key, pid, status);
        }
        if let Some(error) = failed {
            self.not_ready(key, error);
        }
    }

    pub(super) fn delete_container(&mut self, id: &str, reply: Reply<()>) {
        let deletable = self.open(id).and_then(|container| {
            check_thawed(id, container)?;
            match container.init_state() {
                State::Creating | State::Created | State::Stopped => Ok(()),
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
        if container.ending.is_some() {
            // Of a creation that failed because its container is being deleted: the deletion goes on.
            return tell(then, None);
        }
        let deadline = Instant::now() + ENDING_MAX;
        self.kill_and_watch(id, then, deadline);
        self.finish_endings();
    }

    fn kill_and_watch(&mut self, id: &str, then: Then, deadline: Instant) {
        let Some(container) = self.containers.get_mut(id) else {
            return;
        };
        if let Err(error) = container.kill() {
            warn!("{id}: cannot kill: {error}");
        }
        let (empty, late) = (container.cgroup.empty(), deadline);
        let (id, tell) = (id.to_owned(), self.tell.clone());
        let watch = tokio::spawn(async move {
            let result = match empty {
                Ok(empty) => tokio::time::timeout_at(late.into(), empty)
                    .await
                    .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())),
                Err(error) => Err(error),
            };
            let _ = tell.send(News::Emptied {
                id: id.clone(),
                result,
            });
            tokio::time::sleep_until(late.into()).await;
            let _ = tell.send(News::Late { id });
        });
        container.ending = Some(Ending {
            then,
            deadline,
            emptied: None,
            _watch: Watch(watch.abort_handle()),
        });
    }

    pub(super) fn emptied(&mut self, id: &str, result: io::Result<()>) {
        if let Some(ending) = self.ending(id) {
            ending.emptied = Some(result);
        }
    }

    /// Whoever waits is told that it takes too long; the container stays, and its deletion can be asked for again.
    pub(super) fn late(&mut self, id: &str) {
        let container = self.containers.get_mut(id);
        if let Some(ending) = container.and_then(|container| container.ending.take()) {
            tell(ending.then, Some(io::ErrorKind::TimedOut.into()));
        }
    }

    fn ending(&mut self, id: &str) -> Option<&mut Ending> {
        self.containers.get_mut(id)?.ending.as_mut()
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

    /// Removes the cgroup once nothing is in it and nothing is to be heard of its processes.
    fn finish_ending(&mut self, id: &str) {
        let Some(container) = self.containers.get_mut(id) else {
            return;
        };
        let is_pending = container.is_pending();
        let Some(mut ending) = container.ending.take() else {
            return;
        };
        let removed = match ending.emptied.take() {
            Some(Ok(())) if !is_pending => container.cgroup.remove(),
            Some(Err(error)) => Err(error),
            not_yet => {
                ending.emptied = not_yet;
                container.ending = Some(ending);
                return;
            }
        };
        match removed {
            Ok(()) => {
                self.containers.remove(id);
                self.oom.remove(id);
                tell(ending.then, None);
            }
            // A process that was being made has come in after the kill.
            Err(error)
                if error.kind() == io::ErrorKind::ResourceBusy
                    && Instant::now() < ending.deadline =>
            {
                self.kill_and_watch(id, ending.then, ending.deadline);
            }
            Err(error) => tell(ending.then, Some(error)),
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
