//! containerd's Task API: each method translates, asks the sandbox, and translates back.
//!
//! The same methods are served under the names of version 2 and version 3, whose messages are identical. What is not
//! supported is not there, so that the server answers it with `UNIMPLEMENTED`.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use containerd_shim_protos::api;
use containerd_shim_protos::shim_async::{Task, create_task};
use protobuf::well_known_types::timestamp::Timestamp;
use protobuf::{EnumOrUnknown, MessageField};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use ttrpc::asynchronous::{Service, TtrpcContext};

use crate::events::{packed, timestamp};
use crate::inspect;
use crate::process::{Exit, Phase, ProcessKey};
use crate::sandbox::{CreateRequest, Deleted, ExecRequest, Handle, ProcessState, StandIn};
use crate::stats;
use crate::stdio::Stdio;

/// Methods of the API that a sandbox does not have.
const UNSUPPORTED: [&str; 1] = ["Checkpoint"];

/// The API's names: one per version.
const NAMES: [&str; 2] = ["containerd.task.v2.Task", "containerd.task.v3.Task"];

/// The options of Create by which the command line says what is not in the bundle: [`CreateOptions`], JSON.
pub(crate) const CREATE_OPTIONS: &str = "husk.sandbox.v1.CreateOptions";

/// See [`CREATE_OPTIONS`].
#[derive(Debug, Default, Deserialize, Serialize)]
pub(crate) struct CreateOptions {
    /// The process that stands for a member of the sandbox.
    pub(crate) stand_in: Option<StandIn>,
    /// Whether somebody waits for the program to say that it is ready.
    pub(crate) notify: bool,
}

/// The type of an exec's process by which the command line says in which cgroup it is to be: an [`ExecIn`], JSON.
pub(crate) const EXEC_IN: &str = "husk.sandbox.v1.ExecIn";

/// See [`EXEC_IN`].
#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct ExecIn {
    /// Below the container's own.
    pub(crate) cgroup: String,
    /// An OCI `process` object.
    pub(crate) process: serde_json::Value,
}

struct TaskService {
    sandbox: Handle,
    /// Of the supervisor.
    pid: u32,
}

/// The services of a supervisor, to be registered with its server.
pub(crate) fn services(sandbox: &Handle) -> HashMap<String, Service> {
    let task: Arc<dyn Task + Send + Sync> = Arc::new(TaskService {
        sandbox: sandbox.clone(),
        pid: std::process::id(),
    });
    let mut services = HashMap::new();
    for name in NAMES {
        for (_, mut service) in create_task(task.clone()) {
            service
                .methods
                .retain(|method, _| !UNSUPPORTED.contains(&method.as_str()));
            services.insert(name.to_owned(), service);
        }
    }
    services.extend(inspect::service(sandbox));
    services
}

#[async_trait]
impl Task for TaskService {
    async fn create(
        &self,
        _: &TtrpcContext,
        request: api::CreateTaskRequest,
    ) -> ttrpc::Result<api::CreateTaskResponse> {
        let pid = self.sandbox.create(create_request(request)?).await?;
        Ok(api::CreateTaskResponse {
            pid: pid.unsigned_abs(),
            ..Default::default()
        })
    }

    async fn start(
        &self,
        _: &TtrpcContext,
        request: api::StartRequest,
    ) -> ttrpc::Result<api::StartResponse> {
        let pid = self.sandbox.start(key(request.id, request.exec_id)).await?;
        Ok(api::StartResponse {
            pid: pid.unsigned_abs(),
            ..Default::default()
        })
    }

    async fn exec(
        &self,
        _: &TtrpcContext,
        request: api::ExecProcessRequest,
    ) -> ttrpc::Result<api::Empty> {
        self.sandbox.exec(exec_request(request)?).await?;
        Ok(api::Empty::new())
    }

    async fn state(
        &self,
        _: &TtrpcContext,
        request: api::StateRequest,
    ) -> ttrpc::Result<api::StateResponse> {
        let key = key(request.id, request.exec_id);
        let state = self.sandbox.state(key.clone()).await?;
        Ok(state_response(key, state))
    }

    async fn wait(
        &self,
        _: &TtrpcContext,
        request: api::WaitRequest,
    ) -> ttrpc::Result<api::WaitResponse> {
        let exit = self.sandbox.wait(key(request.id, request.exec_id)).await?;
        Ok(api::WaitResponse {
            exit_status: exit.status,
            exited_at: exited_at(exit),
            ..Default::default()
        })
    }

    async fn delete(
        &self,
        _: &TtrpcContext,
        request: api::DeleteRequest,
    ) -> ttrpc::Result<api::DeleteResponse> {
        let key = key(request.id, request.exec_id);
        let Deleted { pid, exit } = self.sandbox.delete(key).await?;
        Ok(api::DeleteResponse {
            pid: pid.unsigned_abs(),
            exit_status: exit.status,
            exited_at: exited_at(exit),
            ..Default::default()
        })
    }

    async fn kill(&self, _: &TtrpcContext, request: api::KillRequest) -> ttrpc::Result<api::Empty> {
        let key = key(request.id, request.exec_id);
        self.sandbox.kill(key, request.signal, request.all).await?;
        Ok(api::Empty::new())
    }

    async fn resize_pty(
        &self,
        _: &TtrpcContext,
        request: api::ResizePtyRequest,
    ) -> ttrpc::Result<api::Empty> {
        let key = key(request.id, request.exec_id);
        self.sandbox
            .resize(key, request.width, request.height)
            .await?;
        Ok(api::Empty::new())
    }

    async fn close_io(
        &self,
        _: &TtrpcContext,
        request: api::CloseIORequest,
    ) -> ttrpc::Result<api::Empty> {
        if request.stdin {
            let key = key(request.id, request.exec_id);
            self.sandbox.close_stdin(key).await?;
        }
        Ok(api::Empty::new())
    }

    async fn pids(
        &self,
        _: &TtrpcContext,
        request: api::PidsRequest,
    ) -> ttrpc::Result<api::PidsResponse> {
        let pid = self.sandbox.pid(request.id).await?;
        Ok(api::PidsResponse {
            processes: vec![api::ProcessInfo {
                pid: pid.unsigned_abs(),
                ..Default::default()
            }],
            ..Default::default()
        })
    }

    async fn pause(
        &self,
        _: &TtrpcContext,
        request: api::PauseRequest,
    ) -> ttrpc::Result<api::Empty> {
        self.sandbox.pause(request.id).await?;
        Ok(api::Empty::new())
    }

    async fn resume(
        &self,
        _: &TtrpcContext,
        request: api::ResumeRequest,
    ) -> ttrpc::Result<api::Empty> {
        self.sandbox.resume(request.id).await?;
        Ok(api::Empty::new())
    }

    async fn update(
        &self,
        _: &TtrpcContext,
        request: api::UpdateTaskRequest,
    ) -> ttrpc::Result<api::Empty> {
        let resources = request.resources.into_option().unwrap_or_default().value;
        self.sandbox.update(request.id, resources).await?;
        Ok(api::Empty::new())
    }

    async fn stats(
        &self,
        _: &TtrpcContext,
        request: api::StatsRequest,
    ) -> ttrpc::Result<api::StatsResponse> {
        let files = self.sandbox.stats(request.id).await?.files;
        let metrics = packed(&stats::metrics(&files))
            .map_err(|error| ttrpc::Error::Others(error.to_string()))?;
        Ok(api::StatsResponse {
            stats: MessageField::some(metrics),
            ..Default::default()
        })
    }

    async fn connect(
        &self,
        _: &TtrpcContext,
        request: api::ConnectRequest,
    ) -> ttrpc::Result<api::ConnectResponse> {
        let task_pid = self.sandbox.pid(request.id).await?;
        Ok(api::ConnectResponse {
            shim_pid: self.pid,
            task_pid: task_pid.unsigned_abs(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            ..Default::default()
        })
    }

    async fn shutdown(
        &self,
        _: &TtrpcContext,
        request: api::ShutdownRequest,
    ) -> ttrpc::Result<api::Empty> {
        self.sandbox.shutdown(request.now).await?;
        Ok(api::Empty::new())
    }
}

fn key(container: String, exec: String) -> ProcessKey {
    ProcessKey { container, exec }
}

fn create_request(request: api::CreateTaskRequest) -> ttrpc::Result<CreateRequest> {
    let options = request.options.into_option().unwrap_or_default();
    let options: CreateOptions = match options.type_url.as_str() {
        CREATE_OPTIONS => understood(CREATE_OPTIONS, &options.value)?,
        _ => CreateOptions::default(),
    };
    Ok(CreateRequest {
        id: request.id,
        bundle: PathBuf::from(request.bundle),
        rootfs: request.rootfs,
        stdio: Stdio {
            terminal: request.terminal,
            stdin: request.stdin,
            stdout: request.stdout,
            stderr: request.stderr,
        },
        stand_in: options.stand_in,
        notify: options.notify,
    })
}

/// What the command line says in words of its own.
fn understood<T: DeserializeOwned>(name: &str, json: &[u8]) -> ttrpc::Result<T> {
    serde_json::from_slice(json).map_err(|error| {
        let text = format!("{name} is not understood: {error}");
        ttrpc::Error::RpcStatus(ttrpc::get_status(ttrpc::Code::INVALID_ARGUMENT, text))
    })
}

fn exec_request(request: api::ExecProcessRequest) -> ttrpc::Result<ExecRequest> {
    let spec = request.spec.into_option().unwrap_or_default();
    let (process, cgroup) = match spec.type_url.as_str() {
        EXEC_IN => {
            let given: ExecIn = understood(EXEC_IN, &spec.value)?;
            (given.process.to_string().into_bytes(), Some(given.cgroup))
        }
        _ => (spec.value, None),
    };
    Ok(ExecRequest {
        key: key(request.id, request.exec_id),
        process,
        cgroup,
        stdio: Stdio {
            terminal: request.terminal,
            stdin: request.stdin,
            stdout: request.stdout,
            stderr: request.stderr,
        },
    })
}

fn state_response(key: ProcessKey, state: ProcessState) -> api::StateResponse {
    let mut response = api::StateResponse {
        id: key.container,
        exec_id: key.exec,
        bundle: state.bundle.to_string_lossy().into_owned(),
        pid: state.pid.unsigned_abs(),
        status: EnumOrUnknown::new(status(state.phase)),
        stdin: state.stdio.stdin,
        stdout: state.stdio.stdout,
        stderr: state.stdio.stderr,
        terminal: state.stdio.terminal,
        ..Default::default()
    };
    if let Some(exit) = state.exit {
        response.exit_status = exit.status;
        response.exited_at = exited_at(exit);
    }
    response
}

fn status(phase: Phase) -> api::Status {
    match phase {
        Phase::Creating | Phase::Undoing | Phase::Unknown => api::Status::UNKNOWN,
        Phase::Created | Phase::Starting => api::Status::CREATED,
        Phase::Running => api::Status::RUNNING,
        Phase::Pausing => api::Status::PAUSING,
        Phase::Paused | Phase::Resuming => api::Status::PAUSED,
        Phase::Stopped | Phase::Deleting => api::Status::STOPPED,
    }
}

fn exited_at(exit: Exit) -> MessageField<Timestamp> {
    MessageField::some(timestamp(exit.at_ns))
}
