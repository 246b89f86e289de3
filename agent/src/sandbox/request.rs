//! What can be asked of the sandbox, how it is asked, and why it may not be done.

use std::collections::HashMap;
use std::io;
use std::path::PathBuf;

use agent_api::agent;
use tokio::sync::{mpsc, oneshot};

use crate::cgroup::LimitError;
use crate::plan::{PlanError, WindowSize};
use crate::report::Failure;
use crate::spawn::SpawnError;
use crate::worker::Busy;

/// Requests that wait for the sandbox. More make the caller wait.
const REQUESTS_MAX: usize = 64;

/// Where an answer goes.
pub(crate) type Reply<T> = oneshot::Sender<Result<T, SandboxError>>;

/// Names a process: container, and exec id, which is empty for the first process.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    pub(crate) container: String,
    pub(crate) exec: String,
}

impl Key {
    /// The first process of a container.
    pub(crate) fn init(container: &str) -> Self {
        Self {
            container: container.to_owned(),
            exec: String::new(),
        }
    }
}

/// A further process of a container.
#[derive(Debug)]
pub(crate) struct NewProcess {
    /// An OCI `process` object, JSON.
    pub(crate) spec: Vec<u8>,
    pub(crate) size: WindowSize,
    /// Below the container's own; none: where the first process is.
    pub(crate) cgroup: Option<String>,
}

/// What a terminal is to be like.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Window {
    pub(crate) size: WindowSize,
    /// ONLCR is cleared; else it is left.
    pub(crate) keep_newlines: bool,
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
        process: NewProcess,
        streams: agent::Streams,
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
        window: Window,
        reply: Reply<()>,
    },
    Pids {
        id: String,
        reply: Reply<Vec<u32>>,
    },
    Processes {
        id: String,
        reply: Reply<Vec<agent::ProcessInfo>>,
    },
    Pause {
        id: String,
        reply: Reply<()>,
    },
    Resume {
        id: String,
        reply: Reply<()>,
    },
    Update {
        id: String,
        resources: Vec<u8>,
        reply: Reply<()>,
    },
    Stats {
        id: String,
        reply: Reply<HashMap<String, String>>,
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
    #[error("namespace {} is of no process of a container here", .0.display())]
    NoNamespace(PathBuf),
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
    Limit(#[from] LimitError),
    #[error("{0} is under way already")]
    Busy(&'static str),
    #[error(transparent)]
    Worker(#[from] Busy),
    #[error(transparent)]
    Spawn(#[from] SpawnError),
    #[error("{0} is not a sub cgroup path")]
    SubCgroup(String),
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

/// A handle, and what it sends.
pub(super) fn channel() -> (Handle, mpsc::Receiver<Request>) {
    let (ask, requests) = mpsc::channel(REQUESTS_MAX);
    (Handle(ask), requests)
}
