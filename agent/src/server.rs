//! The RPCs: decode, ask the sandbox, encode. Nothing else happens here.

use std::sync::{Mutex, PoisonError};

use agent_api::agent::{
    ConfigureRequest, ContainerRequest, CreateContainerRequest, CreateContainerResponse,
    CreateProcessRequest, Empty, Event, OnlineCpusRequest, PidsResponse, ProcessRequest,
    ProcessesResponse, ResizePtyRequest, SignalRequest, StartResponse, StatsResponse, Streams,
    UpdateRequest,
};
use agent_api::agent_ttrpc::Agent;
use async_trait::async_trait;
use ttrpc::r#async::{ServerStreamSender, TtrpcContext};
use ttrpc::{Code, get_status};

use crate::cgroup::LimitError;
use crate::cpus::{self, CpusError};
use crate::machine::{self, MachineError};
use crate::plan::WindowSize;
use crate::report::FailureKind;
use crate::sandbox::{Events, Handle, Key, Request, SandboxError};

/// The service.
#[derive(Debug)]
pub(crate) struct Server {
    sandbox: Handle,
    /// Taken by the one subscriber.
    events: Mutex<Option<Events>>,
    /// Whether this machine is the agent's own, to be configured.
    own_machine: bool,
}

impl Server {
    pub(crate) fn new(sandbox: Handle, events: Events, own_machine: bool) -> Self {
        Self {
            sandbox,
            events: Mutex::new(Some(events)),
            own_machine,
        }
    }
}

#[async_trait]
impl Agent for Server {
    async fn configure(&self, _: &TtrpcContext, request: ConfigureRequest) -> ttrpc::Result<Empty> {
        if self.own_machine {
            machine::configure(&request).map_err(machine_error)?;
        }
        Ok(Empty::default())
    }

    async fn online_cpus(
        &self,
        _: &TtrpcContext,
        request: OnlineCpusRequest,
    ) -> ttrpc::Result<Empty> {
        if self.own_machine {
            // A CPU that goes hands its tasks over first, which takes its time.
            let switched = tokio::task::spawn_blocking(move || cpus::online(request.count)).await;
            switched
                .map_err(|error| status(Code::INTERNAL, error))?
                .map_err(cpus_error)?;
        }
        Ok(Empty::default())
    }

    async fn events(
        &self,
        _: &TtrpcContext,
        _: Empty,
        sender: ServerStreamSender<Event>,
    ) -> ttrpc::Result<()> {
        let events = self
            .events
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        let mut events = events.ok_or_else(|| {
            status(
                Code::FAILED_PRECONDITION,
                "events have a subscriber already",
            )
        })?;
        while let Some(event) = events.recv().await {
            sender.send(&event).await?;
        }
        Ok(())
    }

    async fn create_container(
        &self,
        _: &TtrpcContext,
        request: CreateContainerRequest,
    ) -> ttrpc::Result<CreateContainerResponse> {
        let (size, streams) = (
            size(request.size.as_ref()),
            streams(request.streams.as_ref()),
        );
        let (id, spec) = (request.container_id, request.spec);
        let pid = self
            .sandbox
            .ask(|reply| Request::CreateContainer {
                id,
                spec,
                streams,
                size,
                reply,
            })
            .await;
        Ok(CreateContainerResponse {
            pid: pid.map_err(error)?,
            ..CreateContainerResponse::default()
        })
    }

    async fn start_container(
        &self,
        _: &TtrpcContext,
        request: ContainerRequest,
    ) -> ttrpc::Result<StartResponse> {
        let key = Key {
            container: request.container_id,
            exec: String::new(),
        };
        let pid = self
            .sandbox
            .ask(|reply| Request::Start { key, reply })
            .await
            .map_err(error)?;
        Ok(StartResponse {
            pid,
            ..StartResponse::default()
        })
    }

    async fn delete_container(
        &self,
        _: &TtrpcContext,
        request: ContainerRequest,
    ) -> ttrpc::Result<Empty> {
        let id = request.container_id;
        self.sandbox
            .ask(|reply| Request::DeleteContainer { id, reply })
            .await
            .map_err(error)?;
        Ok(Empty::default())
    }

    async fn create_process(
        &self,
        _: &TtrpcContext,
        request: CreateProcessRequest,
    ) -> ttrpc::Result<Empty> {
        let (size, streams) = (
            size(request.size.as_ref()),
            streams(request.streams.as_ref()),
        );
        let key = Key {
            container: request.container_id,
            exec: request.exec_id,
        };
        let process = request.process;
        self.sandbox
            .ask(|reply| Request::CreateProcess {
                key,
                process,
                streams,
                size,
                reply,
            })
            .await
            .map_err(error)?;
        Ok(Empty::default())
    }

    async fn start_process(
        &self,
        _: &TtrpcContext,
        request: ProcessRequest,
    ) -> ttrpc::Result<StartResponse> {
        let key = exec_key(request)?;
        let pid = self
            .sandbox
            .ask(|reply| Request::Start { key, reply })
            .await
            .map_err(error)?;
        Ok(StartResponse {
            pid,
            ..StartResponse::default()
        })
    }

    async fn delete_process(
        &self,
        _: &TtrpcContext,
        request: ProcessRequest,
    ) -> ttrpc::Result<Empty> {
        let key = exec_key(request)?;
        self.sandbox
            .ask(|reply| Request::DeleteProcess { key, reply })
            .await
            .map_err(error)?;
        Ok(Empty::default())
    }

    async fn signal(&self, _: &TtrpcContext, request: SignalRequest) -> ttrpc::Result<Empty> {
        let key = Key {
            container: request.container_id,
            exec: request.exec_id,
        };
        let (signal, all) = (request.signal, request.all);
        self.sandbox
            .ask(|reply| Request::Signal {
                key,
                signal,
                all,
                reply,
            })
            .await
            .map_err(error)?;
        Ok(Empty::default())
    }

    async fn resize_pty(
        &self,
        _: &TtrpcContext,
        request: ResizePtyRequest,
    ) -> ttrpc::Result<Empty> {
        let size = size(request.size.as_ref());
        let key = Key {
            container: request.container_id,
            exec: request.exec_id,
        };
        self.sandbox
            .ask(|reply| Request::Resize { key, size, reply })
            .await
            .map_err(error)?;
        Ok(Empty::default())
    }

    async fn pids(
        &self,
        _: &TtrpcContext,
        request: ContainerRequest,
    ) -> ttrpc::Result<PidsResponse> {
        let id = request.container_id;
        let pids = self
            .sandbox
            .ask(|reply| Request::Pids { id, reply })
            .await
            .map_err(error)?;
        Ok(PidsResponse {
            pids,
            ..PidsResponse::default()
        })
    }

    async fn processes(
        &self,
        _: &TtrpcContext,
        request: ContainerRequest,
    ) -> ttrpc::Result<ProcessesResponse> {
        let id = request.container_id;
        let processes = self
            .sandbox
            .ask(|reply| Request::Processes { id, reply })
            .await
            .map_err(error)?;
        Ok(ProcessesResponse {
            processes,
            ..ProcessesResponse::default()
        })
    }

    async fn pause(&self, _: &TtrpcContext, request: ContainerRequest) -> ttrpc::Result<Empty> {
        let id = request.container_id;
        self.sandbox
            .ask(|reply| Request::Pause { id, reply })
            .await
            .map_err(error)?;
        Ok(Empty::default())
    }

    async fn resume(&self, _: &TtrpcContext, request: ContainerRequest) -> ttrpc::Result<Empty> {
        let id = request.container_id;
        self.sandbox
            .ask(|reply| Request::Resume { id, reply })
            .await
            .map_err(error)?;
        Ok(Empty::default())
    }

    async fn update(&self, _: &TtrpcContext, request: UpdateRequest) -> ttrpc::Result<Empty> {
        let (id, resources) = (request.container_id, request.resources);
        self.sandbox
            .ask(|reply| Request::Update {
                id,
                resources,
                reply,
            })
            .await
            .map_err(error)?;
        Ok(Empty::default())
    }

    async fn stats(
        &self,
        _: &TtrpcContext,
        request: ContainerRequest,
    ) -> ttrpc::Result<StatsResponse> {
        let id = request.container_id;
        let files = self
            .sandbox
            .ask(|reply| Request::Stats { id, reply })
            .await
            .map_err(error)?;
        Ok(StatsResponse {
            files,
            ..StatsResponse::default()
        })
    }

    async fn shutdown(&self, _: &TtrpcContext, _: Empty) -> ttrpc::Result<Empty> {
        self.sandbox.shut_down().await;
        // The end of the connection is the answer.
        std::future::pending().await
    }
}

fn exec_key(request: ProcessRequest) -> ttrpc::Result<Key> {
    if request.exec_id.is_empty() {
        return Err(status(Code::INVALID_ARGUMENT, "a process needs an exec id"));
    }
    Ok(Key {
        container: request.container_id,
        exec: request.exec_id,
    })
}

fn streams(given: Option<&Streams>) -> Streams {
    given.cloned().unwrap_or_default()
}

fn size(given: Option<&agent_api::agent::WindowSize>) -> WindowSize {
    let narrow = |value| u16::try_from(value).unwrap_or(u16::MAX);
    given
        .map(|size| WindowSize {
            width: narrow(size.width),
            height: narrow(size.height),
        })
        .unwrap_or_default()
}

fn status(code: Code, message: impl ToString) -> ttrpc::Error {
    ttrpc::Error::RpcStatus(get_status(code, message))
}

/// The one table from errors to codes.
#[expect(
    clippy::needless_pass_by_value,
    reason = "the shape that map_err wants"
)]
fn error(error: SandboxError) -> ttrpc::Error {
    let code = match &error {
        SandboxError::NoContainer(_) | SandboxError::NoProcess { .. } => Code::NOT_FOUND,
        SandboxError::Exists(_) => Code::ALREADY_EXISTS,
        SandboxError::State { .. } => Code::FAILED_PRECONDITION,
        SandboxError::Id(_) | SandboxError::Plan(_) => Code::INVALID_ARGUMENT,
        SandboxError::Limit(LimitError::Missing { .. }) => Code::INVALID_ARGUMENT,
        SandboxError::Limit(LimitError::Write { .. }) => Code::INTERNAL,
        SandboxError::Gone | SandboxError::Busy(_) => Code::UNAVAILABLE,
        SandboxError::Io { .. } | SandboxError::Spawn(_) => {
            match error.failure().map(|failure| failure.kind) {
                Some(FailureKind::NotFound) => Code::NOT_FOUND,
                Some(FailureKind::NotExecutable) => Code::PERMISSION_DENIED,
                Some(FailureKind::SetUp) | None => Code::INTERNAL,
            }
        }
    };
    status(code, chain(&error))
}

#[expect(
    clippy::needless_pass_by_value,
    reason = "the shape that map_err wants"
)]
fn machine_error(error: MachineError) -> ttrpc::Error {
    status(Code::INTERNAL, chain(&error))
}

#[expect(
    clippy::needless_pass_by_value,
    reason = "the shape that map_err wants"
)]
fn cpus_error(error: CpusError) -> ttrpc::Error {
    let code = match &error {
        CpusError::Count { .. } => Code::INVALID_ARGUMENT,
        CpusError::Read { .. } | CpusError::List { .. } | CpusError::Switch { .. } => {
            Code::INTERNAL
        }
    };
    status(code, chain(&error))
}

/// The error and its sources, in one line: the wire carries text only.
fn chain(error: &dyn std::error::Error) -> String {
    let mut line = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        line = format!("{line}: {error}");
        source = error.source();
    }
    line
}
