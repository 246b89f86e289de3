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
use tokio::sync::oneshot;
use ttrpc::Code;
use ttrpc::r#async::{ServerStreamSender, TtrpcContext};

use crate::plan::WindowSize;
use crate::sandbox::{Events, Handle, Key, NewProcess, Reply, Request, SandboxError, Window};
use crate::status::status;
use crate::worker::Worker;
use crate::{cpus, machine};

/// The service.
#[derive(Debug)]
pub(crate) struct Server {
    sandbox: Handle,
    /// Taken by the one subscriber.
    events: Mutex<Option<Events>>,
    /// Switches CPUs. None: the machine is not the agent's own, and is left alone.
    machine: Option<Worker>,
}

impl Server {
    pub(crate) fn new(sandbox: Handle, events: Events, machine: Option<Worker>) -> Self {
        Self {
            sandbox,
            events: Mutex::new(Some(events)),
            machine,
        }
    }

    /// Asks the sandbox.
    async fn ask<T>(&self, request: impl FnOnce(Reply<T>) -> Request) -> ttrpc::Result<T> {
        Ok(self.sandbox.ask(request).await?)
    }

    /// The same where the answer is only that it is done.
    async fn order(&self, request: impl FnOnce(Reply<()>) -> Request) -> ttrpc::Result<Empty> {
        self.ask(request).await?;
        Ok(Empty::default())
    }

    async fn start(&self, key: Key) -> ttrpc::Result<StartResponse> {
        let pid = self.ask(|reply| Request::Start { key, reply }).await?;
        Ok(StartResponse {
            pid,
            ..StartResponse::default()
        })
    }
}

#[async_trait]
impl Agent for Server {
    async fn configure(&self, _: &TtrpcContext, request: ConfigureRequest) -> ttrpc::Result<Empty> {
        if self.machine.is_some() {
            machine::configure(&request)?;
        }
        Ok(Empty::default())
    }

    async fn online_cpus(
        &self,
        _: &TtrpcContext,
        request: OnlineCpusRequest,
    ) -> ttrpc::Result<Empty> {
        if let Some(worker) = &self.machine {
            // A CPU that goes hands its tasks over first, which takes its time.
            let (done, switched) = oneshot::channel();
            let turn = worker.turn().map_err(SandboxError::from)?;
            turn.give(move || drop(done.send(cpus::online(request.count))));
            switched
                .await
                .map_err(|error| status(Code::INTERNAL, error))??;
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
            .ask(|reply| Request::CreateContainer {
                id,
                spec,
                streams,
                size,
                reply,
            })
            .await?;
        Ok(CreateContainerResponse {
            pid,
            ..CreateContainerResponse::default()
        })
    }

    async fn start_container(
        &self,
        _: &TtrpcContext,
        request: ContainerRequest,
    ) -> ttrpc::Result<StartResponse> {
        self.start(Key::init(&request.container_id)).await
    }

    async fn delete_container(
        &self,
        _: &TtrpcContext,
        request: ContainerRequest,
    ) -> ttrpc::Result<Empty> {
        let id = request.container_id;
        self.order(|reply| Request::DeleteContainer { id, reply })
            .await
    }

    async fn create_process(
        &self,
        _: &TtrpcContext,
        request: CreateProcessRequest,
    ) -> ttrpc::Result<Empty> {
        let streams = streams(request.streams.as_ref());
        let process = NewProcess {
            size: size(request.size.as_ref()),
            spec: request.process,
            cgroup: request.cgroup,
        };
        let key = Key {
            container: request.container_id,
            exec: request.exec_id,
        };
        self.order(|reply| Request::CreateProcess {
            key,
            process,
            streams,
            reply,
        })
        .await
    }

    async fn start_process(
        &self,
        _: &TtrpcContext,
        request: ProcessRequest,
    ) -> ttrpc::Result<StartResponse> {
        self.start(exec_key(request)?).await
    }

    async fn delete_process(
        &self,
        _: &TtrpcContext,
        request: ProcessRequest,
    ) -> ttrpc::Result<Empty> {
        let key = exec_key(request)?;
        self.order(|reply| Request::DeleteProcess { key, reply })
            .await
    }

    async fn signal(&self, _: &TtrpcContext, request: SignalRequest) -> ttrpc::Result<Empty> {
        let key = Key {
            container: request.container_id,
            exec: request.exec_id,
        };
        let (signal, all) = (request.signal, request.all);
        self.order(|reply| Request::Signal {
            key,
            signal,
            all,
            reply,
        })
        .await
    }

    async fn resize_pty(
        &self,
        _: &TtrpcContext,
        request: ResizePtyRequest,
    ) -> ttrpc::Result<Empty> {
        let window = Window {
            size: size(request.size.as_ref()),
            keep_newlines: request.keep_newlines,
        };
        let key = Key {
            container: request.container_id,
            exec: request.exec_id,
        };
        self.order(|reply| Request::Resize { key, window, reply })
            .await
    }

    async fn pids(
        &self,
        _: &TtrpcContext,
        request: ContainerRequest,
    ) -> ttrpc::Result<PidsResponse> {
        let id = request.container_id;
        let pids = self.ask(|reply| Request::Pids { id, reply }).await?;
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
        let processes = self.ask(|reply| Request::Processes { id, reply }).await?;
        Ok(ProcessesResponse {
            processes,
            ..ProcessesResponse::default()
        })
    }

    async fn pause(&self, _: &TtrpcContext, request: ContainerRequest) -> ttrpc::Result<Empty> {
        let id = request.container_id;
        self.order(|reply| Request::Pause { id, reply }).await
    }

    async fn resume(&self, _: &TtrpcContext, request: ContainerRequest) -> ttrpc::Result<Empty> {
        let id = request.container_id;
        self.order(|reply| Request::Resume { id, reply }).await
    }

    async fn update(&self, _: &TtrpcContext, request: UpdateRequest) -> ttrpc::Result<Empty> {
        let (id, resources) = (request.container_id, request.resources);
        self.order(|reply| Request::Update {
            id,
            resources,
            reply,
        })
        .await
    }

    async fn stats(
        &self,
        _: &TtrpcContext,
        request: ContainerRequest,
    ) -> ttrpc::Result<StatsResponse> {
        let id = request.container_id;
        let files = self.ask(|reply| Request::Stats { id, reply }).await?;
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
