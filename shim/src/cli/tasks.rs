//! One process, as a verb sees it through its supervisor: containerd's Task API in plain Rust values.

use std::io;
use std::path::Path;

use agent_api::agent::ProcessInfo;
use containerd_shim_protos::api;
use containerd_shim_protos::cgroups_v2::metrics::Metrics;
use containerd_shim_protos::shim::event::Envelope;
use containerd_shim_protos::shim_async::TaskClient;
use protobuf::Message as _;
use protobuf::well_known_types::any::Any;
use ttrpc::Code;
use ttrpc::asynchronous::ClientStreamReceiver;
use ttrpc::context::{Context, with_duration, with_timeout};

use crate::config::Options;
use crate::deadlines::ORDER;
use crate::inspect::InspectClient;
use crate::service::{CREATE_OPTIONS, CreateOptions, EXEC_IN, ExecIn};
use crate::state::ProcessRef;
use crate::stdio::lent_name;
use crate::supervise::{self, StartError, Supervisor};

/// Why the supervisor did not do it.
#[derive(Debug, thiserror::Error)]
pub(super) enum TaskError {
    /// It said so; its words are a sentence of their own.
    #[error("{message}")]
    Refused {
        /// What kind of error it is.
        code: Code,
        /// Why.
        message: String,
    },
    /// There was no answer.
    #[error("the supervisor does not answer")]
    Lost(#[source] ttrpc::Error),
}

impl TaskError {
    /// Whether there is no such process, or nobody to ask for it.
    pub(super) fn is_final(&self) -> bool {
        match self {
            Self::Refused { code, .. } => *code == Code::NOT_FOUND,
            Self::Lost(_) => true,
        }
    }

    /// What a shell exits with when a program cannot be executed, if that is why a process was not created or started.
    pub(super) fn program_status(&self) -> Option<u32> {
        match self {
            Self::Refused {
                code: Code::NOT_FOUND,
                ..
            } => Some(127),
            Self::Refused {
                code: Code::PERMISSION_DENIED,
                ..
            } => Some(126),
            _ => None,
        }
    }
}

/// A process's streams, as the supervisor is to find them.
#[derive(Clone, Debug, Default)]
pub(super) struct Streams {
    terminal: bool,
    stdin: String,
    stdout: String,
    stderr: String,
}

impl Streams {
    /// This process's own standard descriptors, which the supervisor takes from it. With a terminal, standard error is not used.
    pub(super) fn own(terminal: bool) -> io::Result<Self> {
        let this = ProcessRef::this()?;
        let of = |fd| lent_name(this, fd);
        Ok(Self {
            terminal,
            stdin: of(0),
            stdout: of(1),
            stderr: if terminal { String::new() } else { of(2) },
        })
    }

    /// This process's descriptor of a terminal.
    pub(super) fn terminal(fd: i32) -> io::Result<Self> {
        let name = lent_name(ProcessRef::this()?, fd);
        Ok(Self {
            terminal: true,
            stdin: name.clone(),
            stdout: name,
            stderr: String::new(),
        })
    }
}

/// A container's init process, or one of its execs.
pub(super) struct Task {
    client: TaskClient,
    inspect: InspectClient,
    id: String,
    /// Empty for the init process.
    exec_id: String,
}

impl Task {
    /// The init process of container `id`, through `supervisor`.
    pub(super) fn init(supervisor: Supervisor, id: &str) -> Self {
        Self {
            client: supervisor.tasks,
            inspect: supervisor.inspect,
            id: id.to_owned(),
            exec_id: String::new(),
        }
    }

    /// The init process of the container `id` that there is.
    pub(super) async fn connect(options: &Options, id: &str) -> Result<Self, StartError> {
        let supervisor = supervise::connect(&options.root, id).await?;
        Ok(Self::init(supervisor, id))
    }

    /// The exec `exec_id` of the same container.
    pub(super) fn exec(self, exec_id: &str) -> Self {
        Self {
            exec_id: exec_id.to_owned(),
            ..self
        }
    }

    /// Makes the container; its program waits for [`Task::start`]. Returns the pid to report.
    pub(super) async fn create(
        &self,
        bundle: &Path,
        streams: Streams,
        with: &CreateOptions,
    ) -> Result<u32, TaskError> {
        let value = serde_json::to_vec(with);
        let options = Any {
            type_url: CREATE_OPTIONS.into(),
            value: value.map_err(|error| unspoken(&error))?,
            ..Default::default()
        };
        let request = api::CreateTaskRequest {
            id: self.id.clone(),
            bundle: bundle.to_string_lossy().into_owned(),
            terminal: streams.terminal,
            stdin: streams.stdin,
            stdout: streams.stdout,
            stderr: streams.stderr,
            options: protobuf::MessageField::some(options),
            ..Default::default()
        };
        let reply = self.client.create(unhurried(), &request).await;
        Ok(reply.map_err(task_error)?.pid)
    }

    /// Makes the exec of an OCI `process` object, JSON; its program waits for [`Task::start`]. `cgroup` is below the container's own.
    pub(super) async fn create_exec(
        &self,
        process: Vec<u8>,
        cgroup: Option<&str>,
        streams: Streams,
    ) -> Result<(), TaskError> {
        let in_cgroup = cgroup.map(|cgroup| exec_in(cgroup, &process)).transpose();
        let (type_url, value) = match in_cgroup.map_err(|error| unspoken(&error))? {
            Some(value) => (EXEC_IN, value),
            None => (
                "types.containerd.io/opencontainers/runtime-spec/1/Process",
                process,
            ),
        };
        let spec = Any {
            type_url: type_url.into(),
            value,
            ..Default::default()
        };
        let request = api::ExecProcessRequest {
            id: self.id.clone(),
            exec_id: self.exec_id.clone(),
            terminal: streams.terminal,
            stdin: streams.stdin,
            stdout: streams.stdout,
            stderr: streams.stderr,
            spec: protobuf::MessageField::some(spec),
            ..Default::default()
        };
        let reply = self.client.exec(unhurried(), &request).await;
        reply.map(drop).map_err(task_error)
    }

    /// Executes the program. Returns the pid to report.
    pub(super) async fn start(&self) -> Result<u32, TaskError> {
        let request = api::StartRequest {
            id: self.id.clone(),
            exec_id: self.exec_id.clone(),
            ..Default::default()
        };
        let reply = self.client.start(unhurried(), &request).await;
        Ok(reply.map_err(task_error)?.pid)
    }

    /// The exit status, once there is one: the exit code, or 128 + the signal.
    pub(super) async fn wait(&self) -> Result<u32, TaskError> {
        let request = api::WaitRequest {
            id: self.id.clone(),
            exec_id: self.exec_id.clone(),
            ..Default::default()
        };
        let reply = self.client.wait(unhurried(), &request).await;
        Ok(reply.map_err(task_error)?.exit_status)
    }

    /// Sends a signal to the process, or to all of its container's.
    pub(super) async fn kill(&self, signal: u32, all: bool) -> Result<(), TaskError> {
        let request = api::KillRequest {
            id: self.id.clone(),
            exec_id: self.exec_id.clone(),
            signal,
            all,
            ..Default::default()
        };
        let reply = self.client.kill(with_duration(ORDER), &request).await;
        reply.map(drop).map_err(task_error)
    }

    /// Sets the size of the process's terminal, in characters.
    pub(super) async fn resize(&self, columns: u16, rows: u16) -> Result<(), TaskError> {
        let request = api::ResizePtyRequest {
            id: self.id.clone(),
            exec_id: self.exec_id.clone(),
            width: columns.into(),
            height: rows.into(),
            ..Default::default()
        };
        let reply = self.client.resize_pty(with_duration(ORDER), &request).await;
        reply.map(drop).map_err(task_error)
    }

    /// Stops all processes of the container where they are.
    pub(super) async fn pause(&self) -> Result<(), TaskError> {
        let request = api::PauseRequest {
            id: self.id.clone(),
            ..Default::default()
        };
        let reply = self.client.pause(unhurried(), &request).await;
        reply.map(drop).map_err(task_error)
    }

    /// Lets them go on.
    pub(super) async fn resume(&self) -> Result<(), TaskError> {
        let request = api::ResumeRequest {
            id: self.id.clone(),
            ..Default::default()
        };
        let reply = self.client.resume(unhurried(), &request).await;
        reply.map(drop).map_err(task_error)
    }

    /// Sets the limits that an OCI `linux.resources` object, JSON, gives.
    pub(super) async fn update(&self, resources: Vec<u8>) -> Result<(), TaskError> {
        let resources = Any {
            type_url: "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources".into(),
            value: resources,
            ..Default::default()
        };
        let request = api::UpdateTaskRequest {
            id: self.id.clone(),
            resources: protobuf::MessageField::some(resources),
            ..Default::default()
        };
        let reply = self.client.update(unhurried(), &request).await;
        reply.map(drop).map_err(task_error)
    }

    /// What the container uses.
    pub(super) async fn stats(&self) -> Result<Metrics, TaskError> {
        let request = api::StatsRequest {
            id: self.id.clone(),
            ..Default::default()
        };
        let reply = self.client.stats(unhurried(), &request).await;
        let stats = reply.map_err(task_error)?.stats.unwrap_or_default();
        Metrics::parse_from_bytes(&stats.value)
            .map_err(|e| TaskError::Lost(ttrpc::Error::Others(e.to_string())))
    }

    /// The container's processes, as the guest tells them.
    pub(super) async fn processes(&self) -> Result<Vec<ProcessInfo>, TaskError> {
        let reply = self.inspect.processes(unhurried(), &self.id).await;
        reply.map_err(task_error)
    }

    /// Waits until the container's program has said that it is ready.
    pub(super) async fn ready(&self) -> Result<(), TaskError> {
        let reply = self.inspect.ready(unhurried(), &self.id).await;
        reply.map_err(task_error)
    }

    /// What happens in the sandbox from now on. The stream ends with it.
    pub(super) async fn events(&self) -> Result<ClientStreamReceiver<Envelope>, TaskError> {
        self.inspect.events().await.map_err(task_error)
    }

    /// Removes the stopped process, after its last output has been delivered.
    pub(super) async fn delete(&self) -> Result<(), TaskError> {
        let request = api::DeleteRequest {
            id: self.id.clone(),
            exec_id: self.exec_id.clone(),
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
        let reply = self.client.shutdown(with_duration(ORDER), &request).await;
        reply.map(drop).map_err(task_error)
    }
}

fn exec_in(cgroup: &str, process: &[u8]) -> serde_json::Result<Vec<u8>> {
    serde_json::to_vec(&ExecIn {
        cgroup: cgroup.to_owned(),
        process: serde_json::from_slice(process)?,
    })
}

/// What cannot be put into a message.
fn unspoken(error: &serde_json::Error) -> TaskError {
    TaskError::Lost(ttrpc::Error::Others(error.to_string()))
}

/// For orders that wait for a guest: their deadlines are the supervisor's.
fn unhurried() -> Context {
    with_timeout(0)
}

fn task_error(error: ttrpc::Error) -> TaskError {
    match error {
        ttrpc::Error::RpcStatus(status) => TaskError::Refused {
            code: status.code(),
            message: status.message,
        },
        error => TaskError::Lost(error),
    }
}
