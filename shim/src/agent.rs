//! The agent's client: typed calls over the connection the agent dialled.
//!
//! Every call has a deadline, so a guest that hangs costs its caller an error and nothing else. When the VM dies the
//! connection closes and all calls fail with [`AgentError::Lost`]; the VMM's end then says why.

use std::fs::File;
use std::future::Future;
use std::io::{self, Read as _};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::time::Duration;

use agent_api::agent::{
    ConfigureRequest, ContainerRequest, CreateContainerRequest, CreateProcessRequest, Empty, Event,
    OnlineCpusRequest, ProcessInfo, ProcessRequest, ResizePtyRequest, SignalRequest, StatsResponse,
    Streams, UpdateRequest, WindowSize,
};
use agent_api::agent_ttrpc::AgentClient;
use protobuf::MessageField;
use tokio::net::UnixStream;
use ttrpc::asynchronous::transport::Socket;
use ttrpc::asynchronous::{Client, ClientStreamReceiver};
use ttrpc::context::Context;

use crate::process::ProcessKey;
use crate::state::now_ns;

/// Making and starting containers, and switching CPUs: much work for a guest, on a host that may be slow.
const WORK_TIMEOUT: Duration = Duration::from_secs(60);

/// Everything that the agent answers from what it has at hand.
const QUICK_TIMEOUT: Duration = Duration::from_secs(10);

/// What a kernel's generator is seeded with at once.
const ENTROPY_BYTES: usize = 64;

/// A connected agent; clones share the connection.
#[derive(Clone)]
pub(crate) struct Agent {
    client: AgentClient,
}

/// Why a call to the agent failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AgentError {
    /// The agent's own words, with its code.
    #[error("{message}")]
    Refused { code: ttrpc::Code, message: String },
    #[error("the agent did not answer within its deadline")]
    TimedOut,
    #[error("the connection to the agent is lost")]
    Lost,
    #[error("cannot talk to the agent")]
    Io(#[from] io::Error),
}

impl std::fmt::Debug for Agent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Agent").finish_non_exhaustive()
    }
}

impl Agent {
    /// Takes over the connection that the agent dialled.
    pub(crate) fn over(stream: OwnedFd) -> Result<Self, AgentError> {
        let stream = StdUnixStream::from(stream);
        stream.set_nonblocking(true)?;
        let socket = Socket::from(UnixStream::from_std(stream)?);
        Ok(Self {
            client: AgentClient::new(Client::new(socket)),
        })
    }

    /// Gives the guest a clock, entropy and a name of its own.
    pub(crate) async fn configure(&self, hostname: &str) -> Result<(), AgentError> {
        let mut entropy = vec![0; ENTROPY_BYTES];
        File::open("/dev/urandom")?.read_exact(&mut entropy)?;
        let request = ConfigureRequest {
            realtime_ns: i64::try_from(now_ns()).unwrap_or(i64::MAX),
            entropy,
            hostname: hostname.to_owned(),
            ..Default::default()
        };
        within(QUICK_TIMEOUT, self.client.configure(unbounded(), &request)).await?;
        Ok(())
    }

    /// Brings so many of the guest's CPUs online and parks the others.
    pub(crate) async fn online_cpus(&self, count: u8) -> Result<(), AgentError> {
        let request = OnlineCpusRequest {
            count: count.into(),
            ..Default::default()
        };
        within(WORK_TIMEOUT, self.client.online_cpus(unbounded(), &request)).await?;
        Ok(())
    }

    /// All events from now on, in order. The stream ends with the connection.
    pub(crate) async fn events(&self) -> Result<ClientStreamReceiver<Event>, AgentError> {
        within(
            QUICK_TIMEOUT,
            self.client.events(unbounded(), &Empty::default()),
        )
        .await
    }

    /// Makes a container from an OCI configuration whose paths are the guest's. Returns its init process's number in the guest.
    pub(crate) async fn create_container(
        &self,
        container_id: &str,
        spec: Vec<u8>,
        streams: Streams,
    ) -> Result<u32, AgentError> {
        let request = CreateContainerRequest {
            container_id: container_id.to_owned(),
            spec,
            streams: MessageField::some(streams),
            ..Default::default()
        };
        let made = within(
            WORK_TIMEOUT,
            self.client.create_container(unbounded(), &request),
        )
        .await?;
        Ok(made.pid)
    }

    /// Makes an exec from an OCI `process` object.
    pub(crate) async fn create_process(
        &self,
        key: &ProcessKey,
        process: Vec<u8>,
        streams: Streams,
    ) -> Result<(), AgentError> {
        let request = CreateProcessRequest {
            container_id: key.container.clone(),
            exec_id: key.exec.clone(),
            process,
            streams: MessageField::some(streams),
            ..Default::default()
        };
        within(
            WORK_TIMEOUT,
            self.client.create_process(unbounded(), &request),
        )
        .await?;
        Ok(())
    }

    /// Executes the program. The pid is the guest's.
    pub(crate) async fn start(&self, key: &ProcessKey) -> Result<u32, AgentError> {
        let response = if key.is_init() {
            let request = container(key);
            within(
                WORK_TIMEOUT,
                self.client.start_container(unbounded(), &request),
            )
            .await?
        } else {
            let request = process(key);
            within(
                WORK_TIMEOUT,
                self.client.start_process(unbounded(), &request),
            )
            .await?
        };
        Ok(response.pid)
    }

    /// Removes a container with all its processes, or one exec.
    pub(crate) async fn delete(&self, key: &ProcessKey) -> Result<(), AgentError> {
        if key.is_init() {
            let request = container(key);
            within(
                WORK_TIMEOUT,
                self.client.delete_container(unbounded(), &request),
            )
            .await?;
        } else {
            let request = process(key);
            within(
                WORK_TIMEOUT,
                self.client.delete_process(unbounded(), &request),
            )
            .await?;
        }
        Ok(())
    }

    /// Sends a signal to one process, or to `all` of the container's.
    pub(crate) async fn signal(
        &self,
        key: &ProcessKey,
        signal: u32,
        all: bool,
    ) -> Result<(), AgentError> {
        let request = SignalRequest {
            container_id: key.container.clone(),
            exec_id: key.exec.clone(),
            signal,
            all,
            ..Default::default()
        };
        within(QUICK_TIMEOUT, self.client.signal(unbounded(), &request)).await?;
        Ok(())
    }

    /// Sets the size of a process's terminal, in characters.
    pub(crate) async fn resize_pty(
        &self,
        key: &ProcessKey,
        width: u32,
        height: u32,
    ) -> Result<(), AgentError> {
        let size = WindowSize {
            width,
            height,
            ..Default::default()
        };
        let request = ResizePtyRequest {
            container_id: key.container.clone(),
            exec_id: key.exec.clone(),
            size: MessageField::some(size),
            ..Default::default()
        };
        within(QUICK_TIMEOUT, self.client.resize_pty(unbounded(), &request)).await?;
        Ok(())
    }

    /// Stops all processes of a container where they are.
    pub(crate) async fn pause(&self, key: &ProcessKey) -> Result<(), AgentError> {
        let request = container(key);
        within(QUICK_TIMEOUT, self.client.pause(unbounded(), &request)).await?;
        Ok(())
    }

    /// Lets them go on.
    pub(crate) async fn resume(&self, key: &ProcessKey) -> Result<(), AgentError> {
        let request = container(key);
        within(QUICK_TIMEOUT, self.client.resume(unbounded(), &request)).await?;
        Ok(())
    }

    /// Sets the limits that an OCI `linux.resources` object, JSON, gives.
    pub(crate) async fn update(
        &self,
        key: &ProcessKey,
        resources: Vec<u8>,
    ) -> Result<(), AgentError> {
        let request = UpdateRequest {
            container_id: key.container.clone(),
            resources,
            ..Default::default()
        };
        within(QUICK_TIMEOUT, self.client.update(unbounded(), &request)).await?;
        Ok(())
    }

    /// The text of the files of a container's cgroup.
    pub(crate) async fn stats(&self, key: &ProcessKey) -> Result<StatsResponse, AgentError> {
        let request = container(key);
        within(QUICK_TIMEOUT, self.client.stats(unbounded(), &request)).await
    }

    /// The processes of a container, init first.
    pub(crate) async fn processes(&self, key: &ProcessKey) -> Result<Vec<ProcessInfo>, AgentError> {
        let request = container(key);
        let response = within(QUICK_TIMEOUT, self.client.processes(unbounded(), &request)).await?;
        Ok(response.processes)
    }

    /// Flushes and powers the machine off. The connection's end is the answer.
    pub(crate) async fn shutdown(&self) -> Result<(), AgentError> {
        let request = Empty::default();
        match within(QUICK_TIMEOUT, self.client.shutdown(unbounded(), &request)).await {
            Ok(_) | Err(AgentError::Lost) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

/// The deadline is kept here alone: an agent told of it would drop its work half done.
async fn within<T>(
    limit: Duration,
    call: impl Future<Output = ttrpc::Result<T>>,
) -> Result<T, AgentError> {
    match tokio::time::timeout(limit, call).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(ttrpc::Error::RpcStatus(status))) => Err(AgentError::Refused {
            code: status.code(),
            message: status.message,
        }),
        Ok(Err(_)) => Err(AgentError::Lost),
        Err(_) => Err(AgentError::TimedOut),
    }
}

fn unbounded() -> Context {
    Context::default()
}

fn container(key: &ProcessKey) -> ContainerRequest {
    ContainerRequest {
        container_id: key.container.clone(),
        ..Default::default()
    }
}

fn process(key: &ProcessKey) -> ProcessRequest {
    ProcessRequest {
        container_id: key.container.clone(),
        exec_id: key.exec.clone(),
        ..Default::default()
    }
}
