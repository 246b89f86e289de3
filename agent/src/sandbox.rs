//! The one owner of all containers: requests in, events out.
//!
//! Everything that takes time is done by a small task of its own, which brings its result back as [`News`]; this task never waits for
//! one container while another has something to say. It alone reaps, so that a process id it holds is never another's.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use agent_api::{StreamId, agent};
use tokio::sync::{mpsc, oneshot};

use crate::cgroup::Cgroup;
use crate::container::{Container, Ending, Member, Waiting};
use crate::log::{debug, warn};
use crate::oom::OomWatch;
use crate::plan::{self, Entry, Plan, PlanError, WindowSize};
use crate::process::{Exited, State};
use crate::reaper::{self, Exit, Reaper};
use crate::report::{Failure, FailureKind};
use crate::signal;
use crate::spawn::{self, SpawnError, Spawned, Spawning};
use crate::stdio;
use crate::streams::Streams;

/// Requests that wait for this task. More make the caller wait.
const REQUESTS_MAX: usize = 64;
/// How often a cgroup is looked at that is to become empty.
const ENDING_TICK: Duration = Duration::from_millis(5);
/// How long killed processes may take to be gone.
const ENDING_MAX: Duration = Duration::from_secs(10);
/// Names become directories.
const ID_LEN_MAX: usize = 200;
const SIGKILL: u32 = 9;

/// Where an answer goes.
pub(crate) type Reply<T> = oneshot::Sender<Result<T, SandboxError>>;

/// Names a process: container, and exec id, which is empty for the first process.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    pub(crate) container: String,
    pub(crate) exec: String,
}

/// What can be asked.
#[derive(Debug)]
pub(crate) enum Request {
    CreateContainer {
        id: String,
        spec: Vec<u8>,
        streams: agent::Streams,
        size: WindowSize,
        reply: Reply<u32>,
    },
    CreateProcess {
        key: Key,
        process: Vec<u8>,
        streams: agent::Streams,
        size: WindowSize,
        reply: Reply<()>,
    },
    Start {
        key: Key,
        reply: Reply<u32>,
    },
    DeleteContainer {
        id: String,
        reply: Reply<()>,
    },
    DeleteProcess {
        key: Key,
        reply: Reply<()>,
    },
    Signal {
        key: Key,
        signal: u32,
        all: bool,
        reply: Reply<()>,
    },
    Resize {
        key: Key,
        size: WindowSize,
        reply: Reply<()>,
    },
    Pids {
        id: String,
        reply: Reply<Vec<u32>>,
    },
    Shutdown,
}

/// Why something asked for was not done.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SandboxError {
    #[error("no container {0:?}")]
    NoContainer(String),
    #[error("no process {exec:?} in container {container:?}")]
    NoProcess { container: String, exec: String },
    #[error("{0:?} exists already")]
    Exists(String),
    #[error("{0:?} is not a valid id")]
    Id(String),
    #[error("{what} is {state}")]
    State { what: String, state: &'static str },
    #[error(transparent)]
    Plan(#[from] PlanError),
    #[error("{doing}")]
    Io {
        doing: &'static str,
        #[source]
        source: io::Error,
    },
    #[error(transparent)]
    Spawn(#[from] SpawnError),
    #[error("the sandbox is shutting down")]
    Gone,
}

impl SandboxError {
    /// What a child has said, where this is why.
    pub(crate) fn failure(&self) -> Option<&Failure> {
        match self {
            Self::Spawn(SpawnError::Failed(failure)) => Some(failure),
            _ => None,
        }
    }
}

/// The result of a step that took time.
#[derive(Debug)]
enum News {
    Ready {
        key: Key,
        spawning: Spawning,
        result: Result<Spawned, SpawnError>,
    },
    Begun {
        key: Key,
        result: Result<(), SpawnError>,
    },
}

/// What a sandbox works with.
#[derive(Debug)]
pub(crate) struct Settings {
    /// The cgroup that containers are made in.
    pub(crate) cgroups: PathBuf,
    pub(crate) streams: Streams,
}

/// Asks the sandbox.
#[derive(Clone, Debug)]
pub(crate) struct Handle(mpsc::Sender<Request>);

impl Handle {
    /// Sends a request and waits for the answer.
    pub(crate) async fn ask<T>(
        &self,
        request: impl FnOnce(Reply<T>) -> Request,
    ) -> Result<T, SandboxError> {
        let (reply, answer) = oneshot::channel();
        self.0
            .send(request(reply))
            .await
            .map_err(|_| SandboxError::Gone)?;
        answer.await.map_err(|_| SandboxError::Gone)?
    }

    /// Ends everything. There is no answer.
    pub(crate) async fn shut_down(&self) {
        // Gone already is what was asked for.
        let _ = self.0.send(Request::Shutdown).await;
    }
}

/// Events in order. Bounded by what the host asked for: one exit per process it started, and one OOM event per container and kill told.
pub(crate) type Events = mpsc::UnboundedReceiver<agent::Event>;

/// The containers of this machine.
#[derive(Debug)]
pub(crate) struct Sandbox {
    settings: Settings,
    containers: HashMap<String, Container>,
    by_pid: HashMap<i32, Key>,
    oom: OomWatch,
    requests: mpsc::Receiver<Request>,
    news: mpsc::UnboundedReceiver<News>,
    tell: mpsc::UnboundedSender<News>,
    events: mpsc::UnboundedSender<agent::Event>,
}

impl Sandbox {
    pub(crate) fn new(settings: Settings) -> io::Result<(Self, Handle, Events)> {
        let (ask, requests) = mpsc::channel(REQUESTS_MAX);
        let (tell, news) = mpsc::unbounded_channel();
        let (events, receiver) = mpsc::unbounded_channel();
        let sandbox = Self {
            settings,
            containers: HashMap::new(),
            by_pid: HashMap::new(),
            oom: OomWatch::new()?,
            requests,
            news,
            tell,
            events,
        };
        Ok((sandbox, Handle(ask), receiver))
    }

    /// Serves until it is asked to shut down; then every container's processes have been killed.
    pub(crate) async fn run(mut self, mut reaper: Reaper) {
        loop {
            let ending = self
                .containers
                .values()
                .any(|container| container.ending.is_some());
            tokio::select! {
                request = self.requests.recv() => match request {
                    Some(Request::Shutdown) | None => break,
                    Some(request) => self.serve(request),
                },
                Some(news) = self.news.recv() => self.take(news),
                () = reaper.ended() => self.reap(),
                Ok(container) = self.oom.changed() => self.tell_oom(&container),
                () = tokio::time::sleep(ENDING_TICK), if ending => self.finish_endings(),
            }
        }
        for container in self.containers.values() {
            if let Err(error) = container.cgroup.kill() {
                warn!("cannot kill a container: {error}");
            }
        }
    }

    fn serve(&mut self, request: Request) {
        match request {
            Request::CreateContainer {
                id,
                spec,
                streams,
                size,
                reply,
            } => {
                self.create_container(id, &spec, &streams, size, reply);
            }
            Request::CreateProcess {
                key,
                process,
                streams,
                size,
                reply,
            } => {
                answer(reply, self.create_process(&key, &process, &streams, size));
            }
            Request::Start { key, reply } => self.start(&key, reply),
            Request::DeleteContainer { id, reply } => self.delete_container(&id, reply),
            Request::DeleteProcess { key, reply } => answer(reply, self.delete_process(&key)),
            Request::Signal {
                key,
                signal,
                all,
                reply,
            } => answer(reply, self.signal(&key, signal, all)),
            Request::Resize { key, size, reply } => answer(reply, self.resize(&key, size)),
            Request::Pids { id, reply } => answer(reply, self.pids(&id)),
            Request::Shutdown => {}
        }
    }

    // === creating ===

    fn create_container(
        &mut self,
        id: String,
        spec: &[u8],
        streams: &agent::Streams,
        size: WindowSize,
        reply: Reply<u32>,
    ) {
        let key = Key {
            container: id,
            exec: String::new(),
        };
        match self.begin_container(&key, spec, streams, size) {
            Ok(()) => {
                if let Some(member) = self.member(&key) {
                    member.reply = Some(reply);
                }
            }
            Err(error) => answer(reply, Err(error)),
        }
    }

    fn begin_container(
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
        let plan = plan::container(spec, &self.settings.cgroups.join(id), size)?;
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

    fn begin_init(
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

    fn create_process(
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
        let init = container
            .members
            .get("")
            .map_or(State::Stopped, |init| init.process.state());
        if !matches!(init, State::Created | State::Starting | State::Running) {
            return Err(wrong_state(
                &Key {
                    container: key.container.clone(),
                    exec: String::new(),
                },
                init,
            ));
        }
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
    fn streams(
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

    // === starting ===

    fn await_ready(&self, key: Key, mut spawning: Spawning) {
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

    fn start(&mut self, key: &Key, reply: Reply<u32>) {
        if let Err(error) = self.begin_start(key) {
            return answer(reply, Err(error));
        }
        if let Some(member) = self.member(key) {
            member.reply = Some(reply);
        }
    }

    fn begin_start(&mut self, key: &Key) -> Result<(), SandboxError> {
        let container = self.open(&key.container)?;
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

    fn go(&mut self, key: &Key, mut spawning: Spawning) {
        if let Some(member) = self.member(key) {
            member.process.set_state(State::Starting);
        }
        let (key, tell) = (key.clone(), self.tell.clone());
        tokio::spawn(async move {
            let result = spawning.go().await;
            let _ = tell.send(News::Begun { key, result });
        });
    }

    fn take(&mut self, news: News) {
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
        }
    }

    /// The process is there and waits for its program.
    fn ready(&mut self, key: &Key, spawning: Spawning, spawned: Spawned) {
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

    fn not_ready(&mut self, key: &Key, error: SpawnError) {
        let kind = if let SpawnError::Failed(failure) = &error {
            failure.kind
        } else {
            FailureKind::SetUp
        };
        let reply = self.member(key).and_then(|member| member.reply.take());
        if key.exec.is_empty() {
            let deadline = Instant::now() + ENDING_MAX;
            self.end(
                &key.container,
                Ending::Failed {
                    reply,
                    error: error.into(),
                    deadline,
                },
            );
        } else {
            if let Some(reply) = reply {
                answer(reply, Err(error.into()));
            }
            self.end_unborn(key, kind);
        }
    }

    /// An exec that never had a program ends as a shell would say.
    fn end_unborn(&mut self, key: &Key, kind: FailureKind) {
        if let Some(member) = self.member(key) {
            member.process.set_state(State::Stopped);
            self.publish_exit(key, 0, kind.status().into());
        }
    }

    /// The program has begun, or cannot.
    fn begun(&mut self, key: &Key, result: Result<(), SpawnError>) {
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

    // === ending ===

    fn reap(&mut self) {
        while let Some(Exit { pid, status }) = reaper::next() {
            // Others are stages of children, and orphans.
            if let Some(key) = self.by_pid.remove(&pid) {
                self.exited(&key, pid, status);
            }
        }
        self.finish_endings();
    }

    fn exited(&mut self, key: &Key, pid: i32, status: u32) {
        self.tell_oom(&key.container);
        let Some(container) = self.containers.get_mut(&key.container) else {
            return;
        };
        // Orphans of a container that shares its pid namespace live on without their init.
        if key.exec.is_empty()
            && !container.has_own_pids()
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

    fn delete_container(&mut self, id: &str, reply: Reply<()>) {
        let deletable = self.open(id).and_then(|container| {
            let init = container
                .members
                .get("")
                .map_or(State::Stopped, |init| init.process.state());
            let key = Key {
                container: id.to_owned(),
                exec: String::new(),
            };
            if matches!(init, State::Created | State::Stopped) {
                Ok(())
            } else {
                Err(wrong_state(&key, init))
            }
        });
        match deletable {
            Ok(()) => self.end(
                id,
                Ending::Deleted {
                    reply,
                    deadline: Instant::now() + ENDING_MAX,
                },
            ),
            Err(error) => answer(reply, Err(error)),
        }
    }

    /// Kills what is left; the rest follows as processes end.
    fn end(&mut self, id: &str, ending: Ending) {
        let Some(container) = self.containers.get_mut(id) else {
            return;
        };
        if let Err(error) = container.cgroup.kill() {
            warn!("{id}: cannot kill: {error}");
        }
        container.ending = Some(ending);
        self.finish_endings();
    }

    fn finish_endings(&mut self) {
        let ending = self
            .containers
            .iter()
            .filter(|(_, container)| container.ending.is_some());
        let ids: Vec<String> = ending.map(|(id, _)| id.clone()).collect();
        for id in ids {
            self.finish_ending(&id);
        }
    }

    fn finish_ending(&mut self, id: &str) {
        let Some(container) = self.containers.get_mut(id) else {
            return;
        };
        let Some(ending) = &container.ending else {
            return;
        };
        let (Ending::Deleted { deadline, .. } | Ending::Failed { deadline, .. }) = ending;
        let late = Instant::now() >= *deadline;
        let removed = if container.has_live_member() {
            Err(io::ErrorKind::ResourceBusy.into())
        } else {
            container.cgroup.remove()
        };
        match (removed, container.ending.take()) {
            (Ok(()), ending) => {
                self.containers.remove(id);
                self.oom.remove(id);
                match ending {
                    Some(Ending::Deleted { reply, .. }) => answer(reply, Ok(())),
                    Some(Ending::Failed { reply, error, .. }) => send(reply, Err(error)),
                    None => {}
                }
            }
            (Err(source), Some(Ending::Deleted { reply, .. })) if late => {
                answer(
                    reply,
                    Err(SandboxError::Io {
                        doing: "cannot remove the cgroup",
                        source,
                    }),
                );
            }
            (Err(_), Some(Ending::Failed { reply, error, .. })) if late => send(reply, Err(error)),
            (Err(_), ending) => container.ending = ending,
        }
    }

    fn delete_process(&mut self, key: &Key) -> Result<(), SandboxError> {
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

    // === what can be done to processes ===

    fn signal(&mut self, key: &Key, number: u32, all: bool) -> Result<(), SandboxError> {
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

    fn resize(&mut self, key: &Key, size: WindowSize) -> Result<(), SandboxError> {
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

    fn pids(&mut self, id: &str) -> Result<Vec<u32>, SandboxError> {
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

    // === events ===

    fn publish_exit(&self, key: &Key, pid: i32, status: u32) {
        let exit = agent::Exit {
            container_id: key.container.clone(),
            exec_id: key.exec.clone(),
            pid: u32::try_from(pid).unwrap_or(0),
            status,
            at_ns: now_ns(),
            ..agent::Exit::default()
        };
        self.publish(agent::event::Kind::Exit(exit));
    }

    fn tell_oom(&mut self, id: &str) {
        if self
            .containers
            .get_mut(id)
            .is_some_and(Container::oom_happened)
        {
            let oom = agent::Oom {
                container_id: id.to_owned(),
                ..agent::Oom::default()
            };
            self.publish(agent::event::Kind::Oom(oom));
        }
    }

    fn publish(&self, kind: agent::event::Kind) {
        // Nobody listens any more when the machine goes down.
        let _ = self.events.send(agent::Event {
            kind: Some(kind),
            ..agent::Event::default()
        });
    }

    // === looking up ===

    fn open(&mut self, id: &str) -> Result<&mut Container, SandboxError> {
        let container = self
            .containers
            .get_mut(id)
            .ok_or_else(|| SandboxError::NoContainer(id.to_owned()))?;
        if container.ending.is_some() {
            return Err(SandboxError::State {
                what: format!("container {id:?}"),
                state: "being deleted",
            });
        }
        Ok(container)
    }

    fn member(&mut self, key: &Key) -> Option<&mut Member> {
        self.containers
            .get_mut(&key.container)?
            .members
            .get_mut(&key.exec)
    }
}

fn answer<T>(reply: Reply<T>, result: Result<T, SandboxError>) {
    // Whoever asked may have gone away.
    let _ = reply.send(result);
}

fn send(reply: Option<Reply<u32>>, result: Result<i32, SandboxError>) {
    if let Some(reply) = reply {
        answer(reply, result.map(|pid| u32::try_from(pid).unwrap_or(0)));
    }
}

fn io(doing: &'static str) -> impl Fn(io::Error) -> SandboxError {
    move |source| SandboxError::Io { doing, source }
}

fn no_process(key: &Key) -> SandboxError {
    SandboxError::NoProcess {
        container: key.container.clone(),
        exec: key.exec.clone(),
    }
}

fn wrong_state(key: &Key, state: State) -> SandboxError {
    let state = match state {
        State::Creating => "being created",
        State::Created => "created",
        State::Starting | State::StartingEnded(_) => "being started",
        State::Running => "running",
        State::Stopped => "stopped",
    };
    let what = if key.exec.is_empty() {
        format!("container {:?}", key.container)
    } else {
        format!("process {:?}", key.exec)
    };
    SandboxError::State { what, state }
}

/// An id is one component of a path.
fn check_id(id: &str) -> Result<(), SandboxError> {
    let allowed =
        |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.' | '+' | ':' | '@');
    let fine = !id.is_empty()
        && id.len() <= ID_LEN_MAX
        && id.chars().all(allowed)
        && !matches!(id, "." | "..");
    if fine && Path::new(id).components().count() == 1 {
        Ok(())
    } else {
        Err(SandboxError::Id(id.to_owned()))
    }
}

fn now_ns() -> i64 {
    let since = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}
