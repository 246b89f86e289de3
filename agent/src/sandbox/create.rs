//! From a specification to a process that waits for its program, and from there to the program.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use agent_api::{StreamId, agent};

use super::pause::check_thawed;
use super::resources::tell_ignored;
use super::{
    Key, NewProcess, News, NotifySocket, Reply, Sandbox, SandboxError, answer, check_id, io,
    no_process, send, wrong_state,
};
use crate::cgroup::Cgroup;
use crate::container::{Container, Member, Then, Waiting};
use crate::log::{debug, warn};
use crate::plan::{self, Entry, Place, Plan, WindowSize};
use crate::process::State;
use crate::report::FailureKind;
use crate::spawn::{self, SpawnError, Spawned, Spawning};
use crate::stdio;

impl Sandbox {
    pub(super) fn create_container(
        &mut self,
        id: &str,
        spec: &[u8],
        streams: &agent::Streams,
        size: WindowSize,
        reply: Reply<u32>,
    ) {
        let key = Key::init(id);
        match self.begin_container(&key, spec, streams, size) {
            Ok(()) => {
                if let Some(member) = self.member(&key) {
                    member.reply = Some(reply);
                }
            }
            Err(error) => answer(reply, Err(error)),
        }
    }

    pub(super) fn begin_container(
        &mut self,
        key: &Key,
        spec: &[u8],
        streams: &agent::Streams,
        size: WindowSize,
    ) -> Result<(), SandboxError> {
        let id = &key.container;
        check_id(id)?;
        if self.containers.contains_key(id) {
            return Err(SandboxError::Exists(id.clone()));
        }
        let place = Place {
            id,
            cgroup: &self.settings.cgroups.join(id),
        };
        let mut plan = plan::container(spec, place, size)?;
        // Until the child has its own descriptors of them.
        let _held = self.hold_namespaces(&mut plan)?;
        let mut notify = None;
        if let Entry::Create(container) = &mut plan.entry {
            self.memories.bind(&mut container.mounts)?;
            self.notified += 1;
            notify = NotifySocket::bind(&mut container.mounts, self.notified, id, &self.tell)
                .map_err(io("cannot make the notify socket"))?;
            tell_ignored(id, &container.limits.ignored);
        }
        let cgroup =
            Cgroup::create(&self.settings.cgroups, id).map_err(io("cannot make the cgroup"))?;
        let mut container = Container::new(cgroup, &plan);
        container.notify = notify;
        let begun = self.begin_init(&mut container, &plan, key, streams);
        if begun.is_err() {
            // Nothing is in it yet.
            container
                .cgroup
                .remove()
                .map_err(io("cannot remove the cgroup"))?;
            return begun;
        }
        if let Err(error) = self.oom.add(id, container.cgroup.path()) {
            debug!("{id}: no watch for memory events: {error}");
        }
        self.containers.insert(id.clone(), container);
        Ok(())
    }

    pub(super) fn begin_init(
        &mut self,
        container: &mut Container,
        plan: &Plan,
        key: &Key,
        streams: &agent::Streams,
    ) -> Result<(), SandboxError> {
        let mut member = Member::new(State::Creating);
        let stdio = self.streams(
            &mut member,
            &plan.process,
            container.owner(&plan.process),
            streams,
        )?;
        let (spawning, maker) = spawn::spawn(plan, stdio, None)?;
        self.await_ready(key.clone(), spawning);
        member.maker = Some(maker);
        container.members.insert(String::new(), member);
        Ok(())
    }

    pub(super) fn create_process(
        &mut self,
        key: &Key,
        process: NewProcess,
        streams: &agent::Streams,
    ) -> Result<(), SandboxError> {
        check_id(&key.exec)?;
        let container = self.open(&key.container)?;
        if container.members.contains_key(&key.exec) {
            return Err(SandboxError::Exists(key.exec.clone()));
        }
        let init = container.init_state();
        if !matches!(init, State::Created | State::Starting | State::Running) {
            return Err(wrong_state(&Key::init(&key.container), init));
        }
        check_thawed(&key.container, container)?;
        let cgroup = match process.cgroup {
            None => None,
            Some(path) => match container.cgroup.below(&path) {
                None => return Err(SandboxError::SubCgroup(path)),
                below => below,
            },
        };
        let plan = plan::exec(&process.spec, &container.template, process.size)?;
        let owner = container.owner(&plan);
        let mut member = Member::new(State::Created);
        let stdio = self.streams(&mut member, &plan, owner, streams)?;
        member.waiting = Some(Waiting {
            plan,
            stdio,
            cgroup,
        });
        self.open(&key.container)?
            .members
            .insert(key.exec.clone(), member);
        Ok(())
    }

    /// Claims the streams: the terminal's stays with the member, the others become pipes.
    pub(super) fn streams(
        &self,
        member: &mut Member,
        process: &plan::Process,
        owner: (u32, u32),
        streams: &agent::Streams,
    ) -> Result<stdio::ChildStdio, SandboxError> {
        let claim = |id| StreamId::new(id).map(|id| self.settings.streams.claim(id));
        if process.terminal {
            member.terminal = claim(streams.terminal);
            return Ok(stdio::ChildStdio::default());
        }
        let claims = stdio::Claims {
            stdin: claim(streams.stdin),
            stdout: claim(streams.stdout),
            stderr: claim(streams.stderr),
        };
        let (stdio, outputs) =
            stdio::pipes(claims, owner).map_err(io("cannot make the standard streams"))?;
        member.outputs = outputs;
        Ok(stdio)
    }

    pub(super) fn await_ready(&self, key: Key, mut spawning: Spawning) {
        let tell = self.tell.clone();
        tokio::spawn(async move {
            let result = match spawning.spawned().await {
                Ok(spawned) => {
                    let key = key.clone();
                    // The sandbox is gone only when the machine goes down.
                    let _ = tell.send(News::Spawned { key, spawned });
                    spawning.ready().await
                }
                Err(error) => Err(error),
            };
            let _ = tell.send(News::Ready {
                key,
                spawning,
                result,
            });
        });
    }

    pub(super) fn start(&mut self, key: &Key, reply: Reply<u32>) {
        if let Err(error) = self.begin_start(key) {
            return answer(reply, Err(error));
        }
        if let Some(member) = self.member(key) {
            member.reply = Some(reply);
        }
    }

    pub(super) fn begin_start(&mut self, key: &Key) -> Result<(), SandboxError> {
        let container = self.open(&key.container)?;
        check_thawed(&key.container, container)?;
        let namespaces = container.namespaces;
        let init = container.members.get("").map(|init| &init.process);
        let init = init
            .filter(|init| init.is_alive())
            .and_then(|init| init.pid());
        let member = container
            .members
            .get_mut(&key.exec)
            .ok_or_else(|| no_process(key))?;
        let (State::Created, Some(init)) = (member.process.state(), init) else {
            return Err(wrong_state(key, member.process.state()));
        };
        if let Some(spawning) = member.spawning.take() {
            self.go(key, spawning);
            return Ok(());
        }
        let waiting = member
            .waiting
            .take()
            .ok_or_else(|| wrong_state(key, State::Stopped))?;
        member.process.set_state(State::Creating);
        let plan = Plan {
            // A cgroup that the container has divided takes no processes itself.
            cgroup: waiting
                .cgroup
                .unwrap_or_else(|| container.cgroup.current(init)),
            entry: Entry::Join(namespaces),
            process: waiting.plan,
        };
        match spawn::spawn(&plan, waiting.stdio, container.pidfd.as_ref()) {
            Ok((spawning, maker)) => {
                member.maker = Some(maker);
                self.await_ready(key.clone(), spawning);
                Ok(())
            }
            Err(error) => {
                self.end_unborn(key, FailureKind::SetUp.status().into());
                Err(error.into())
            }
        }
    }

    pub(super) fn go(&mut self, key: &Key, mut spawning: Spawning) {
        if let Some(member) = self.member(key) {
            member.process.set_state(State::Starting);
        }
        let (key, tell) = (key.clone(), self.tell.clone());
        tokio::spawn(async move {
            let result = spawning.go().await;
            let _ = tell.send(News::Begun { key, result });
        });
    }

    pub(super) fn take(&mut self, news: News) {
        match news {
            News::Spawned { key, spawned } => self.spawned(&key, spawned),
            News::Ready {
                key,
                spawning,
                result,
            } => match result {
                Ok(terminal) => self.ready(&key, spawning, terminal),
                Err(error) => self.not_ready(&key, error),
            },
            News::Begun { key, result } => self.begun(&key, result),
            News::Notified { id } => self.tell_ready(id),
            News::Frozen { id, result, reply } => answer(reply, self.paused(&id, result)),
            News::Emptied { id, result } => self.emptied(&id, result),
            News::Late { id } => self.late(&id),
        }
        self.finish_endings();
    }

    /// There is a process: from now on it can be killed.
    fn spawned(&mut self, key: &Key, spawned: Spawned) {
        // One that has ended may have been reaped as a stranger, and its id be another's; that it is gone is told as the next thing.
        if spawned.has_ended() {
            return;
        }
        let ending = self
            .containers
            .get(&key.container)
            .is_none_or(|container| container.ending.is_some());
        let Some(member) = self.member(key) else {
            return spawned.kill();
        };
        member.maker = None;
        member.process.spawned(spawned.pid);
        if member.killed || ending {
            spawned.kill();
        }
        self.by_pid.insert(spawned.pid, key.clone());
        if let Some(container) = self.containers.get_mut(&key.container)
            && key.exec.is_empty()
        {
            container.pidfd = Some(spawned.pidfd);
        }
    }

    /// The process waits for its program.
    fn ready(&mut self, key: &Key, spawning: Spawning, terminal: Option<OwnedFd>) {
        let Some(member) = self.member(key) else {
            return;
        };
        let Some(pid) = member.process.pid().filter(|_| member.process.is_alive()) else {
            return self.not_ready(key, SpawnError::Killed);
        };
        if member.killed {
            return self.not_ready(key, SpawnError::Killed);
        }
        let claim = member.terminal.take();
        let terminal = terminal
            .map(|master| stdio::terminal(claim, master))
            .transpose();
        let terminal = terminal.unwrap_or_else(|error| {
            warn!("{}: no terminal: {error}", key.container);
            None
        });
        member
            .process
            .set_terminal(terminal.as_ref().map(Arc::downgrade));
        if !key.exec.is_empty() {
            return self.go(key, spawning);
        }
        member.process.set_state(State::Created);
        member.spawning = Some(spawning);
        send(member.reply.take(), Ok(pid));
    }

    /// There will be no program. That is told when the process, if there is one, has ended by itself.
    pub(super) fn not_ready(&mut self, key: &Key, error: SpawnError) {
        let Some(member) = self.member(key) else {
            return;
        };
        if matches!(error, SpawnError::Killed) && member.process.is_alive() {
            member.failed = Some(error);
            return;
        }
        let kind = match &error {
            SpawnError::Failed(failure) => failure.kind,
            _ => FailureKind::SetUp,
        };
        let status = member.process.untold().unwrap_or(kind.status().into());
        member.process.set_state(State::Stopped);
        let (reply, pid) = (member.reply.take(), member.process.pid());
        // Its end is told here. The id may be another's already.
        if let Some(pid) = pid.filter(|pid| self.by_pid.get(pid) == Some(key)) {
            self.by_pid.remove(&pid);
        }
        if key.exec.is_empty() {
            self.end(&key.container, Then::Failed(reply, error.into()));
        } else {
            send(reply, Err(error.into()));
            self.end_unborn(key, status);
        }
    }

    /// An exec that never had a program ends as a shell would say.
    fn end_unborn(&mut self, key: &Key, status: u32) {
        let Some(member) = self.member(key) else {
            return;
        };
        member.process.set_state(State::Stopped);
        let deleted = member.deleted.take();
        self.publish_exit(key, 0, status);
        if let Some(deleted) = deleted
            && let Some(container) = self.containers.get_mut(&key.container)
        {
            container.members.remove(&key.exec);
            answer(deleted, Ok(()));
        }
    }

    /// The program has begun, or cannot.
    pub(super) fn begun(&mut self, key: &Key, result: Result<(), SpawnError>) {
        let Some(member) = self.member(key) else {
            return;
        };
        let pid = member.process.pid().unwrap_or(0);
        let ended = member.process.started();
        send(
            member.reply.take(),
            result.map(|()| pid).map_err(SandboxError::from),
        );
        if let Some(status) = ended {
            self.publish_exit(key, pid, status);
        }
    }
}
