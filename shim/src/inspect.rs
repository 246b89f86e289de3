//! What containerd's Task API has no method for, served beside it on the same socket.
//!
//! ```text
//!   husk.sandbox.v1.Inspect/Processes   ContainerRequest ─► ProcessesResponse    the guest's processes, with what `ps` says of them
//!   husk.sandbox.v1.Inspect/Ready       ContainerRequest ─► Empty                when the container's program has said that it is ready
//!   husk.sandbox.v1.Inspect/Events      Empty ─► stream of Envelope              from the call on, until the sandbox is gone
//! ```
//!
//! Processes are here and not in the Task API's `Pids` because their numbers are the guest's: containerd's clients look up the
//! pids they are told among the processes of the host.

use std::collections::HashMap;
use std::sync::Arc;

use agent_api::agent::{ContainerRequest, ProcessInfo, ProcessesResponse};
use async_trait::async_trait;
use containerd_shim_protos::api::Empty;
use containerd_shim_protos::shim::event::Envelope;
use ttrpc::asynchronous::{
    Client, ClientStreamReceiver, MethodHandler, ServerStreamSender, Service, StreamHandler,
    StreamInner, TtrpcContext,
};
use ttrpc::context::Context;

use crate::sandbox::{Handle, Life};

const NAME: &str = "husk.sandbox.v1.Inspect";

const PROCESSES: &str = "Processes";

const READY: &str = "Ready";

const EVENTS: &str = "Events";

/// The service of a sandbox, by its name.
pub(crate) fn service(sandbox: &Handle) -> HashMap<String, Service> {
    let service = Inspect {
        sandbox: sandbox.clone(),
    };
    let mut methods: HashMap<String, Box<dyn MethodHandler + Send + Sync>> = HashMap::new();
    methods.insert(
        PROCESSES.into(),
        Box::new(Processes {
            service: service.clone(),
        }),
    );
    methods.insert(
        READY.into(),
        Box::new(Ready {
            service: service.clone(),
        }),
    );
    let mut streams: HashMap<String, Arc<dyn StreamHandler + Send + Sync>> = HashMap::new();
    streams.insert(EVENTS.into(), Arc::new(Events { service }));
    HashMap::from([(NAME.to_owned(), Service { methods, streams })])
}

#[derive(Clone)]
struct Inspect {
    sandbox: Handle,
}

impl Inspect {
    async fn processes(
        &self,
        _: &TtrpcContext,
        request: ContainerRequest,
    ) -> ttrpc::Result<ProcessesResponse> {
        Ok(ProcessesResponse {
            processes: self.sandbox.processes(request.container_id).await?,
            ..Default::default()
        })
    }

    async fn ready(&self, _: &TtrpcContext, request: ContainerRequest) -> ttrpc::Result<Empty> {
        self.sandbox.ready(request.container_id).await?;
        Ok(Empty::default())
    }

    async fn events(
        &self,
        _: &TtrpcContext,
        _: Empty,
        sender: ServerStreamSender<Envelope>,
    ) -> ttrpc::Result<()> {
        let mut events = self.sandbox.events();
        let gone = self.sandbox.reaches(|life| *life == Life::Gone);
        tokio::pin!(gone);
        loop {
            let event = tokio::select! {
                event = events.recv() => event,
                () = &mut gone => return Ok(()),
            };
            match event {
                Ok(event) => match event.envelope() {
                    Ok(envelope) => sender.send(&envelope).await?,
                    Err(error) => tracing::error!("an event cannot be written: {error}"),
                },
                Err(overrun) => {
                    tracing::warn!("{overrun}");
                    let code = ttrpc::Code::RESOURCE_EXHAUSTED;
                    let status = ttrpc::get_status(code, overrun.to_string());
                    return Err(ttrpc::Error::RpcStatus(status));
                }
            }
        }
    }
}

struct Processes {
    service: Inspect,
}

#[async_trait]
impl MethodHandler for Processes {
    async fn handler(
        &self,
        ctx: TtrpcContext,
        req: ttrpc::Request,
    ) -> ttrpc::Result<ttrpc::Response> {
        ttrpc::async_request_handler!(self, ctx, req, ContainerRequest, processes);
    }
}

struct Ready {
    service: Inspect,
}

#[async_trait]
impl MethodHandler for Ready {
    async fn handler(
        &self,
        ctx: TtrpcContext,
        req: ttrpc::Request,
    ) -> ttrpc::Result<ttrpc::Response> {
        ttrpc::async_request_handler!(self, ctx, req, ContainerRequest, ready);
    }
}

struct Events {
    service: Inspect,
}

#[async_trait]
impl StreamHandler for Events {
    async fn handler(
        &self,
        ctx: TtrpcContext,
        mut inner: StreamInner,
    ) -> ttrpc::Result<Option<ttrpc::Response>> {
        ttrpc::async_server_streamimg_handler!(self, ctx, inner, Empty, events);
    }
}

/// The other side.
#[derive(Clone)]
pub(crate) struct InspectClient {
    client: Client,
}

impl InspectClient {
    pub(crate) fn new(client: Client) -> Self {
        Self { client }
    }

    /// The processes of a container, init first; none when it has stopped.
    pub(crate) async fn processes(
        &self,
        context: Context,
        container: &str,
    ) -> ttrpc::Result<Vec<ProcessInfo>> {
        let request = ContainerRequest {
            container_id: container.to_owned(),
            ..Default::default()
        };
        Ok(self.call_processes(context, &request).await?.processes)
    }

    async fn call_processes(
        &self,
        context: Context,
        request: &ContainerRequest,
    ) -> ttrpc::Result<ProcessesResponse> {
        let mut response = ProcessesResponse::default();
        ttrpc::async_client_request!(self, context, request, NAME, PROCESSES, response);
    }

    /// Returns when the program of a container has said that it is ready.
    pub(crate) async fn ready(&self, context: Context, container: &str) -> ttrpc::Result<()> {
        let request = ContainerRequest {
            container_id: container.to_owned(),
            ..Default::default()
        };
        self.call_ready(context, &request).await.map(drop)
    }

    async fn call_ready(
        &self,
        context: Context,
        request: &ContainerRequest,
    ) -> ttrpc::Result<Empty> {
        let mut response = Empty::default();
        ttrpc::async_client_request!(self, context, request, NAME, READY, response);
    }

    /// All events from now on. Ends with the sandbox.
    pub(crate) async fn events(&self) -> ttrpc::Result<ClientStreamReceiver<Envelope>> {
        let (context, request) = (Context::default(), &Empty::default());
        ttrpc::async_client_stream_receive!(self, context, request, NAME, EVENTS);
    }
}
