//! The one owner of all containers: requests in, events out.
//!
//! Everything that takes time is done by a small task of its own, which brings its result back as [`News`]; this task never waits for
//! one container while another has something to say. It alone reaps, so that a process id it holds is never another's.

mod control;
mod create;
mod end;
mod memory;
mod namespaces;
mod notify;
mod pause;
mod request;
mod resources;

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use agent_api::agent;
use tokio::sync::{Semaphore, mpsc};

pub(crate) use self::notify::NotifySocket;
pub(crate) use self::request::{Handle, Key, NewProcess, Reply, Request, SandboxError, Window};
use crate::container::{Container, Member};
use crate::log::warn;
use crate::oom::OomWatch;
use crate::process::State;
use crate::reaper::Reaper;
use crate::reserve::Reserve;
use crate::spawn::{SpawnError, Spawned, Spawning};
use crate::streams::Streams;
use crate::worker::Worker;

/// Names become directories.
const ID_LEN_MAX: usize = 200;

/// The result of a step that took time.
#[derive(Debug)]
enum News {
    /// There is a process, which is being set up.
    Spawned { key: Key, spawned: Spawned },
    /// Only its program is missing; with the master of its terminal.
    Ready {
        key: Key,
        spawning: Spawning,
        result: Result<Option<OwnedFd>, SpawnError>,
    },
    Begun {
        key: Key,
        result: Result<(), SpawnError>,
    },
    Frozen {
        id: String,
        result: io::Result<()>,
        reply: Reply<()>,
    },
    /// Its program has said that it is ready.
    Notified { id: String },
    /// No process is in the cgroup of a container that ends.
    Emptied { id: String, result: io::Result<()> },
    /// It was waited for long enough.
    Late { id: String },
}

/// What a sandbox works with.
#[derive(Debug)]
pub(crate) struct Settings {
    /// The cgroup that containers are made in.
    pub(crate) cgroups: PathBuf,
    /// What the machine keeps from them, where it is the agent's own.
    pub(crate) reserve: Option<Reserve>,
    pub(crate) streams: Streams,
    /// Writes limits.
    pub(crate) writer: Worker,
    /// Looks into processes.
    pub(crate) looker: Worker,
}

/// Events in order. What the host asked for bounds them: one exit per process that it started, one for a program that is ready, and memory events at a bounded rate.
pub(crate) type Events = mpsc::UnboundedReceiver<agent::Event>;

/// The containers of this machine.
#[derive(Debug)]
pub(crate) struct Sandbox {
    settings: Settings,
    containers: HashMap<String, Container>,
    memories: memory::Memories,
    /// How many notify sockets there have been.
    notified: u64,
    by_pid: HashMap<i32, Key>,
    oom: OomWatch,
    /// Whose turn it is to look at processes.
    listing: Arc<Semaphore>,
    requests: mpsc::Receiver<Request>,
    news: mpsc::UnboundedReceiver<News>,
    tell: mpsc::UnboundedSender<News>,
    events: mpsc::UnboundedSender<agent::Event>,
}

impl Sandbox {
    pub(crate) fn new(settings: Settings) -> io::Result<(Self, Handle, Events)> {
        let (ask, requests) = request::channel();
        let (tell, news) = mpsc::unbounded_channel();
        let (events, receiver) = mpsc::unbounded_channel();
        let sandbox = Self {
            settings,
            containers: HashMap::new(),
            memories: memory::Memories::default(),
            notified: 0,
            by_pid: HashMap::new(),
            oom: OomWatch::new()?,
            listing: Arc::new(Semaphore::new(1)),
            requests,
            news,
            tell,
            events,
        };
        Ok((sandbox, ask, receiver))
    }

    /// Serves until it is asked to shut down; then every container's processes have been killed.
    pub(crate) async fn run(mut self, mut reaper: Reaper) {
        loop {
            tokio::select! {
                request = self.requests.recv() => match request {
                    Some(Request::Shutdown) | None => break,
                    Some(request) => self.serve(request),
                },
                Some(news) = self.news.recv() => self.take(news),
                () = reaper.ended() => self.reap(),
                Ok(container) = self.oom.changed() => self.tell_oom(&container, false),
            }
        }
        for container in self.containers.values_mut() {
            if let Err(error) = container.kill() {
                warn!("cannot kill a container: {error}");
            }
        }
    }

    fn serve(&mut self, request: Request) {
        if let Some(reserve) = &mut self.settings.reserve {
            reserve.renew(&self.settings.writer);
        }
        match request {
            Request::CreateContainer {
                id,
                spec,
                streams,
                size,
                reply,
            } => {
                self.create_container(&id, &spec, &streams, size, reply);
            }
            Request::CreateProcess {
                key,
                process,
                streams,
                reply,
            } => answer(reply, self.create_process(&key, process, &streams)),
            Request::Start { key, reply } => self.start(&key, reply),
            Request::DeleteContainer { id, reply } => self.delete_container(&id, reply),
            Request::DeleteProcess { key, reply } => self.delete_process(&key, reply),
            Request::Signal {
                key,
                signal,
                all,
                reply,
            } => answer(reply, self.signal(&key, signal, all)),
            Request::Resize { key, window, reply } => answer(reply, self.resize(&key, window)),
            Request::Pids { id, reply } => answer(reply, self.pids(&id)),
            Request::Processes { id, reply } => self.processes(&id, reply),
            Request::Pause { id, reply } => self.pause(&id, reply),
            Request::Resume { id, reply } => answer(reply, self.resume(&id)),
            Request::Update {
                id,
                resources,
                reply,
            } => self.update(&id, &resources, reply),
            Request::Stats { id, reply } => answer(reply, self.stats(&id)),
            Request::Shutdown => {}
        }
    }

    // === events ===

    fn publish_exit(&self, key: &Key, pid: i32, status: u32) {
        let container = self.containers.get(&key.container);
        let outputs = container
            .and_then(|container| container.members.get(&key.exec))
            .map(|member| &member.outputs);
        let exit = agent::Exit {
            container_id: key.container.clone(),
            exec_id: key.exec.clone(),
            pid: u32::try_from(pid).unwrap_or(0),
            status,
            at_ns: now_ns(),
            stdout: outputs.and_then(|outputs| outputs.stdout.written()),
            stderr: outputs.and_then(|outputs| outputs.stderr.written()),
            ..agent::Exit::default()
        };
        self.publish(agent::event::Kind::Exit(exit));
    }

    fn tell_oom(&mut self, id: &str, at_exit: bool) {
        let container = self.containers.get_mut(id);
        if container.is_some_and(|container| container.oom_to_tell(Instant::now(), at_exit)) {
            let oom = agent::Oom {
                container_id: id.to_owned(),
                ..agent::Oom::default()
            };
            self.publish(agent::event::Kind::Oom(oom));
        }
    }

    fn tell_ready(&self, id: String) {
        if self.containers.contains_key(&id) {
            self.publish(agent::event::Kind::Ready(agent::Ready {
                container_id: id,
                ..agent::Ready::default()
            }));
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
