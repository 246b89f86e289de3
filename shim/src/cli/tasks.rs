//! One container, as a verb sees it through its supervisor: containerd's Task API in plain Rust values.

use std::path::Path;
use std::time::Duration;

use containerd_shim_protos::api;
use containerd_shim_protos::shim_async::TaskClient;
use ttrpc::context::{Context, with_duration, with_timeout};

/// How long an order that needs nothing but the supervisor may take.
const SHORT: Duration = Duration::from_secs(10);

/// Why the supervisor did not do it.
#[derive(Debug, thiserror::Error)]
pub(super) enum TaskError {
    /// It said so; its words are a sentence of their own.
    #[error("{0}")]
    Refused(String),
    /// There was no answer.
    #[error("the supervisor does not answer")]
    Lost(#[source] ttrpc::Error),
}

/// A container's three streams, as the supervisor is to find them.
#[derive(Clone, Debug, Default)]
pub(super) struct Streams {
    pub(super) stdin: String,
    pub(super) stdout: String,
    /// Empty with a terminal.
    pub(super) stderr: String,
}

impl Streams {
    /// This process's own standard descriptors, which the supervisor takes from it.
    pub(super) fn own(terminal: bool) -> Self {
        let of = |fd: u8| format!("fd://{}/{fd}", std::process::id());
        Self {
            stdin: of(0),
            stdout: of(1),
            stderr: if terminal { String::new() } else { of(2) },
        }
    }
}

/// One container's task.
#[derive(Clone)]
pub(super) struct Task {
    client: TaskClient,
    id: String,
}

impl Task {
    pub(super) fn new(client: TaskClient, id: &str) -> Self {
        Self {
            client,
            id: id.to_owned(),
        }
    }

    /// Makes the container; its program waits for [`Task::start`]. Returns the pid to report.
    pub(super) async fn create(
        &self,
        bundle: &Path,
        terminal: bool,
        streams: Streams,
    ) -> Result<u32, TaskError> {
        let request = api::CreateTaskRequest {
            id: self.id.clone(),
            bundle: bundle.to_string_lossy().into_owned(),
            terminal,
            stdin: streams.stdin,
            stdout: streams.stdout,
            stderr: streams.stderr,
            ..Default::default()
        };
        let reply = self.client.create(unhurried(), &request).await;
        Ok(reply.map_err(task_error)?.pid)
    }

    /// Executes the container's program.
    pub(super) async fn start(&self) -> Result<(), TaskError> {
        let request = api::StartRequest {
            id: self.id.clone(),
            ..Default::default()
        };
        let reply = self.client.start(unhurried(), &request).await;
        reply.map(drop).map_err(task_error)
    }

    /// The exit status, once there is one: the exit code, or 128 + the signal.
    pub(super) async fn wait(&self) -> Result<u32, TaskError> {
        let request = api::WaitRequest {
            id: self.id.clone(),
            ..Default::default()
        };
        let reply = self.client.wait(unhurried(), &request).await;
        Ok(reply.map_err(task_error)?.exit_status)
    }

    /// Sends a signal to the container's init process.
    pub(super) async fn kill(&self, signal: u32) -> Result<(), TaskError> {
        let request = api::KillRequest {
            id: self.id.clone(),
            signal,
            ..Default::default()
        };
        let reply = self.client.kill(with_duration(SHORT), &request).await;
        reply.map(drop).map_err(task_error)
    }

    /// Sets the size of the container's terminal, in characters.
    pub(super) async fn resize(&self, columns: u16, rows: u16) -> Result<(), TaskError> {
        let request = api::ResizePtyRequest {
            id: self.id.clone(),
            width: columns.into(),
            height: rows.into(),
            ..Default::default()
        };
        let reply = self.client.resize_pty(with_duration(SHORT), &request).await;
        reply.map(drop).map_err(task_error)
    }

    /// Removes the stopped container, after its last output has been delivered.
    pub(super) async fn delete(&self) -> Result<(), TaskError> {
        let request = api::DeleteRequest {
            id: self.id.clone(),
            ..Default::default()
        };
        let reply = self.client.delete(unhurried(), &request).await;
        reply.map(drop).map_err(task_error)
    }

    /// Ends the supervisor with all it has.
    pub(super) async fn shutdown(&self) -> Result<(), TaskError> {
        let request = api::ShutdownRequest {
            id: self.id.clone(),
            now: true,
            ..Default::default()
        };
        let reply = self.client.shutdown(with_duration(SHORT), &request).await;
        reply.map(drop).map_err(task_error)
    }
}

/// For orders that wait for a guest: their deadlines are the supervisor's.
fn unhurried() -> Context {
    with_timeout(0)
}

fn task_error(error: ttrpc::Error) -> TaskError {
    match error {
        ttrpc::Error::RpcStatus(status) => TaskError::Refused(status.message),
        error => TaskError::Lost(error),
    }
}
