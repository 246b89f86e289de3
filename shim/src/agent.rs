//! The agent's client: typed calls over the connection the agent dialled.
//!
//! Every call has a deadline, so a guest that hangs costs its caller an error and nothing else. When the VM dies the
//! connection closes and all calls fail with [`AgentError::Lost`]; the VMM's end then says why. What the agent answers goes through
//! [`crate::guest`], byte for byte.

use std::future::Future;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::time::Duration;

use agent_api::agent::{
    ConfigureRequest, ContainerRequest, CreateContainerRequest, CreateProcessRequest, Empty,
    OnlineCpusRequest, ProcessInfo, ProcessRequest, ResizePtyRequest, SignalRequest, StatsResponse,
    Streams, UpdateRequest, WindowSize,
};
use protobuf::{Message, MessageField};
use rustix::rand::{GetRandomFlags, getrandom};
use tokio::net::UnixStream;
use ttrpc::asynchronous::transport::Socket;
use ttrpc::asynchronous::{Client, StreamInner};

use crate::deadlines::{AGENT_PAUSE, AGENT_QUICK, AGENT_WORK};
use crate::guest::events::GuestEvent;
use crate::guest::frames::{Credit, Gate, Link, Violation};
use crate::guest::{Malformed, events, limits, replies, text};
use crate::process::ProcessKey;
use crate::state::now_ns;

/// The service of `agent.proto`.
const SERVICE: &str = "husk.agent.v1.Agent";

/// What a kernel's generator is seeded with at once.
const ENTROPY_BYTES: usize = 64;

/// A connected agent; clones share the connection.
#[derive(Clone)]
pub(crate) struct Agent {
    client: Client,
    link: Link,
}

/// What happens in a guest, in order.
#[derive(Debug)]
pub(crate) struct GuestEvents {
    stream: StreamInner,
    link: Link,
}

/// Why a call to the agent failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AgentError {
    /// The agent's own words, cleaned, with its code.
    #[error("{message}")]
    Refused { code: ttrpc::Code, message: String },
    #[error("the agent did not answer within its deadline")]
    TimedOut,
    #[error("the connection to the agent is lost")]
    Lost,
    #[error("the agent's answer is no answer")]
    Malformed(#[from] Malformed),
    #[error("cannot talk to the agent")]
    Io(#[from] io::Error),
}

impl AgentError {
    /// Whether what was asked for may be done all the same, or be done yet.
    pub(crate) fn is_open(&self) -> bool {
        matches!(self, Self::TimedOut | Self::Malformed(_))
    }

    /// Whether the agent says that there is no such container or process.
    pub(crate) fn is_not_found(&self) -> bool {
        matches!(
            self,
            Self::Refused {
                code: ttrpc::Code::NOT_FOUND,
                ..
            }
        )
    }
}

impl std::fmt::Debug for Agent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Agent").finish_non_exhaustive()
    }
}

impl GuestEvents {
    /// The next one, and its credit, to be kept until it has been acted on. None when the connection has ended, which it does
    /// when the agent sends what is none.
    pub(crate) async fn next(&mut self) -> Option<(GuestEvent, Credit)> {
        // Its end and its loss are the same: an agent never ends it.
        let bytes = self.stream.recv().await.ok()?;
        let credit = self.link.credit();
        match events::event(&bytes) {
            Ok(event) => Some((event, credit)),
            Err(malformed) => {
                self.link.break_off(malformed.into());
                None
            }
        }
    }

    /// How the agent broke the protocol, if it did.
    pub(crate) fn violation(&self) -> Option<&Violation> {
        self.link.violation()
    }
}

impl Agent {
    /// Takes over the connection that the agent dialled.
    pub(crate) fn over(stream: OwnedFd) -> Result<Self, AgentError> {
        let stream = StdUnixStream::from(stream);
        stream.set_nonblocking(true)?;
        let link = Link::default();
        let gate = Gate::new(UnixStream::from_std(stream)?, link.clone());
        Ok(Self {
            client: Client::new(Socket::new(gate)),
            link,
        })
    }

    /// Gives the guest a clock, entropy and a name of its own.
    pub(crate) async fn configure(&self, hostname: &str) -> Result<(), AgentError> {
        let mut entropy = vec![0; ENTROPY_BYTES];
        rustix::io::retry_on_intr(|| getrandom(&mut entropy[..], GetRandomFlags::empty()))
            .map_err(io::Error::from)?;
        let request = ConfigureRequest {
            realtime_ns: i64::try_from(now_ns()).unwrap_or(i64::MAX),
            entropy,
            hostname: hostname.to_owned(),
            ..Default::default()
        };
        self.call(AGENT_QUICK, "Configure", &request, replies::done)
            .await
    }

    /// Gives the guest the host's time.
    pub(crate) async fn set_clock(&self) -> Result<(), AgentError> {
        let request = ConfigureRequest {
            realtime_ns: i64::try_from(now_ns()).unwrap_or(i64::MAX),
            ..Default::default()
        };
        self.call(AGENT_QUICK, "Configure", &request, replies::done)
            .await
    }

    /// Brings so many of the guest's CPUs online and parks the others.
    pub(crate) async fn online_cpus(&self, count: u8) -> Result<(), AgentError> {
        let request = OnlineCpusRequest {
            count: count.into(),
            ..Default::default()
        };
        self.call(AGENT_WORK, "OnlineCpus", &request, replies::done)
            .await
    }

    /// All events from now on, in order. They end with the connection.
    pub(crate) async fn events(&self) -> Result<GuestEvents, AgentError> {
        let request = request("Events", &Empty::default())?;
        let stream = within(AGENT_QUICK, self.client.new_stream(request, false, true)).await?;
        Ok(GuestEvents {
            stream,
            link: self.link.clone(),
        })
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
        self.call(AGENT_WORK, "CreateContainer", &request, replies::pid)
            .await
    }

    /// Makes an exec from an OCI `process` object, in a cgroup below the container's.
    pub(crate) async fn create_process(
        &self,
        key: &ProcessKey,
        process: Vec<u8>,
        cgroup: Option<String>,
        streams: Streams,
    ) -> Result<(), AgentError> {
        let request = CreateProcessRequest {
            container_id: key.container.clone(),
            exec_id: key.exec.clone(),
            process,
            cgroup,
            streams: MessageField::some(streams),
            ..Default::default()
        };
        self.call(AGENT_WORK, "CreateProcess", &request, replies::done)
            .await
    }

    /// Executes the program. The pid is the guest's.
    pub(crate) async fn start(&self, key: &ProcessKey) -> Result<u32, AgentError> {
        if key.is_init() {
            let request = container(key);
            self.call(AGENT_WORK, "StartContainer", &request, replies::pid)
                .await
        } else {
            let request = process(key);
            self.call(AGENT_WORK, "StartProcess", &request, replies::pid)
                .await
        }
    }

    /// Removes a container with all its processes, or one exec.
    pub(crate) async fn delete(&self, key: &ProcessKey) -> Result<(), AgentError> {
        if key.is_init() {
            let request = container(key);
            self.call(AGENT_WORK, "DeleteContainer", &request, replies::done)
                .await?;
        } else {
            let request = process(key);
            self.call(AGENT_WORK, "DeleteProcess", &request, replies::done)
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
        self.call(AGENT_QUICK, "Signal", &request, replies::done)
            .await
    }

    /// Sets the size of a process's terminal, in characters, 0 to leave it; with `keep_newlines` its line ends become plain ones.
    pub(crate) async fn resize_pty(
        &self,
        key: &ProcessKey,
        (width, height): (u32, u32),
        keep_newlines: bool,
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
            keep_newlines,
            ..Default::default()
        };
        self.call(AGENT_QUICK, "ResizePty", &request, replies::done)
            .await
    }

    /// Stops all processes of a container where they are.
    pub(crate) async fn pause(&self, key: &ProcessKey) -> Result<(), AgentError> {
        let request = container(key);
        self.call(AGENT_PAUSE, "Pause", &request, replies::done)
            .await
    }

    /// Lets them go on.
    pub(crate) async fn resume(&self, key: &ProcessKey) -> Result<(), AgentError> {
        let request = container(key);
        self.call(AGENT_QUICK, "Resume", &request, replies::done)
            .await
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
        self.call(AGENT_QUICK, "Update", &request, replies::done)
            .await
    }

    /// The text of the files of a container's cgroup.
    pub(crate) async fn stats(&self, key: &ProcessKey) -> Result<StatsResponse, AgentError> {
        let request = container(key);
        self.call(AGENT_QUICK, "Stats", &request, replies::stats)
            .await
    }

    /// The processes of a container, init first.
    pub(crate) async fn processes(&self, key: &ProcessKey) -> Result<Vec<ProcessInfo>, AgentError> {
        let request = container(key);
        self.call(AGENT_QUICK, "Processes", &request, replies::processes)
            .await
    }

    /// Flushes and powers the machine off. The connection's end is the answer.
    pub(crate) async fn shutdown(&self) -> Result<(), AgentError> {
        let request = Empty::default();
        match self
            .call(AGENT_QUICK, "Shutdown", &request, replies::done)
            .await
        {
            Ok(_) | Err(AgentError::Lost) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Asks, and understands the answer by `read`.
    async fn call<T>(
        &self,
        limit: Duration,
        method: &str,
        message: &impl Message,
        read: fn(&[u8]) -> Result<T, Malformed>,
    ) -> Result<T, AgentError> {
        let call = self.client.request(request(method, message)?);
        Ok(read(&within(limit, call).await?.payload)?)
    }
}

/// A call without a deadline of ttrpc's: [`within`] keeps it alone, since an agent that is told of it would drop its work half done.
fn request(method: &str, message: &impl Message) -> io::Result<ttrpc::Request> {
    Ok(ttrpc::Request {
        service: SERVICE.to_owned(),
        method: method.to_owned(),
        payload: message.write_to_bytes().map_err(io::Error::other)?,
        ..Default::default()
    })
}

async fn within<T>(
    limit: Duration,
    call: impl Future<Output = ttrpc::Result<T>>,
) -> Result<T, AgentError> {
    match tokio::time::timeout(limit, call).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(ttrpc::Error::RpcStatus(status))) => Err(AgentError::Refused {
            code: status.code(),
            message: text::clean(&status.message, limits::ERROR_MAX_BYTES),
        }),
        Ok(Err(_)) => Err(AgentError::Lost),
        Err(_) => Err(AgentError::TimedOut),
    }
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
