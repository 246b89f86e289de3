//! From a specification to a process that waits for its program, and from there to the program.

use agent_api::{StreamId, agent};

use super::pause::check_thawed;
use super::resources::tell_ignored;
use super::{
    Key, News, Reply, Sandbox, SandboxError, answer, check_id, io, no_process, send, wrong_state,
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
        let plan = plan::container(spec, place, size)?;
        if let Entry::Create(container) = &plan.entry {
            tell_ignored(id, &container.limits.ignored);
        }
        let cgroup =
            Cgroup::create(&self.settings.cgroups, id).map_err(io("cannot make the cgroup"))?;
        let mut container = Container::new(cgroup, &plan);
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
        let spawning = spawn::spawn(plan, stdio, None)?;
        self.await_ready(key.clone(), spawning);
        container.members.insert(String::new(), member);
        Ok(())
    }

    pub(super) fn create_process(
        &mut self,
        key: &Key,
        process: &[u8],
        streams: &agent::Streams,
        size: WindowSize,
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
        let plan = plan::exec(process, &container.template, size)?;
        let owner = container.owner(&plan);
        let mut member = Member::new(State::Created);
        let stdio = self.streams(&mut member, &plan, owner, streams)?;
        member.waiting = Some(Waiting { plan, stdio });
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
        stdio::pipes(claims, owner).map_err(io("cannot make the standard streams"))
    }

    pub(super) fn await_ready(&self, key: Key, mut spawning: Spawning) {
        let tell = self.tell.clone();
        tokio::spawn(async move {
            let result = spawning.ready().await;
            // The sandbox is gone only when the machine goes down.
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
        let (namespaces, cgroup) = (container.namespaces, container.cgroup.path().to_owned());
        let init_is_there = container
            .members
            .get("")
            .is_some_and(|init| init.process.is_alive());
        let member = container
            .members
            .get_mut(&key.exec)
            .ok_or_else(|| no_process(key))?;
        if member.process.state() != State::Created || !init_is_there {
            return Err(wrong_state(key, member.process.state()));
        }
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
            cgroup,
            entry: Entry::Join(namespaces),
            process: waiting.plan,
        };
        match spawn::spawn(&plan, waiting.stdio, container.pidfd.as_ref()) {
            Ok(spawning) => {
                self.await_ready(key.clone(), spawning);
                Ok(())
            }
            Err(error) => {
                self.end_unborn(key, FailureKind::SetUp);
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
            News::Ready {
                key,
                spawning,
                result,
            } => match result {
                // What has ended before it was named is reaped as a stranger.
                Ok(spawned) if spawned.has_ended() => self.not_ready(&key, SpawnError::Killed),
                Ok(spawned) => self.ready(&key, spawning, spawned),
                Err(error) => self.not_ready(&key, error),
            },
            News::Begun { key, result } => self.begun(&key, result),
            News::Frozen { id, result, reply } => answer(reply, self.paused(&id, result)),
        }
    }

    /// The process is there and waits for its program.
    pub(super) fn ready(&mut self, key: &Key, spawning: Spawning, spawned: Spawned) {
        let pid = spawned.pid;
        let Some(member) = self.member(key) else {
            return;
        };
        let claim = member.terminal.take();
        let terminal = spawned
            .terminal
            .map(|master| stdio::terminal(claim, master))
            .transpose();
        let terminal = terminal.unwrap_or_else(|error| {
            warn!("{}: no terminal: {error}", key.container);
            None
        });
        member
            .process
            .spawned(pid, terminal.as_ref().map(std::sync::Arc::downgrade));
        self.by_pid.insert(pid, key.clone());
        if !key.exec.is_empty() {
            return self.go(key, spawning);
        }
        let Some(container) = self.containers.get_mut(&key.container) else {
            return;
        };
        container.pidfd = Some(spawned.pidfd);
        if let Some(member) = container.members.get_mut("") {
            member.process.set_state(State::Created);
            member.spawning = Some(spawning);
            send(member.reply.take(), Ok(pid));
        }
    }

    pub(super) fn not_ready(&mut self, key: &Key, error: SpawnError) {
        let kind = if let SpawnError::Failed(failure) = &error {
            failure.kind
        } else {
            FailureKind::SetUp
        };
        let reply = self.member(key).and_then(|member| {
            member.process.set_state(State::Stopped);
            member.reply.take()
        });
        if key.exec.is_empty() {
            self.end(&key.container, Then::Failed(reply, error.into()));
        } else {
            if let Some(reply) = reply {
                answer(reply, Err(error.into()));
            }
            self.end_unborn(key, kind);
        }
    }

    /// An exec that never had a program ends as a shell would say.
    pub(super) fn end_unborn(&mut self, key: &Key, kind: FailureKind) {
        if let Some(member) = self.member(key) {
            member.process.set_state(State::Stopped);
            self.publish_exit(key, 0, kind.status().into());
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
