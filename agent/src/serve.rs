//! Serves one host, from the dial to the end of the connection.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use agent_api::agent_ttrpc::create_agent;
use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, setrlimit};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::UnixStream;
use ttrpc::asynchronous::Server as Ttrpc;
use ttrpc::asynchronous::transport::Listener;

use crate::cgroup;
use crate::reaper::Reaper;
use crate::reserve::Reserve;
use crate::sandbox::{Sandbox, Settings};
use crate::server::Server;
use crate::streams::Streams;
use crate::transport::{self, Watched};
use crate::worker::Worker;

/// Descriptors of the agent: two for each of the 1024 connections that a VMM carries, one or two for each process, and much to spare.
const DESCRIPTORS_MAX: u64 = 1 << 16;

/// Why the host is not served (any more).
#[derive(Debug, thiserror::Error)]
pub(crate) enum ServeError {
    #[error("cannot raise the limit of open files")]
    Descriptors(#[source] Errno),
    #[error("cannot start the runtime")]
    Runtime(#[source] io::Error),
    #[error("cannot listen for streams")]
    Listen(#[source] io::Error),
    #[error("cannot reach the host")]
    Dial(#[source] io::Error),
    #[error("cannot prepare cgroup {path:?}")]
    Cgroup {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot serve")]
    Ttrpc(#[source] ttrpc::Error),
}

/// As PID 1 of a guest: over vsock, containers in a cgroup that leaves the agent its reserve.
pub(crate) fn guest() -> Result<(), ServeError> {
    let path = Path::new(cgroup::CONTAINERS);
    let reserve = cgroup::prepare(path).and_then(|()| Reserve::new(path));
    let reserve = reserve.map_err(|source| ServeError::Cgroup {
        path: path.to_owned(),
        source,
    })?;
    run(async {
        let listener = transport::listen_vsock().map_err(ServeError::Listen)?;
        let begun = begin(listener, path, Some(reserve))?;
        let control = transport::dial_vsock().await.map_err(ServeError::Dial)?;
        begun.serve(control, true).await
    })
}

/// On a host, for tests: over Unix sockets in `directory`, containers in the cgroup `cgroup` below the hierarchy's top. Nothing else of
/// the host is touched.
pub(crate) fn directory(directory: &Path, cgroup: &str) -> Result<(), ServeError> {
    let path = Path::new(cgroup::MOUNT).join(cgroup);
    cgroup::prepare(&path).map_err(|source| ServeError::Cgroup {
        path: path.clone(),
        source,
    })?;
    // Orphans come to the agent, as they do to PID 1.
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))
        .map_err(|errno| ServeError::Runtime(errno.into()))?;
    run(async {
        let listener =
            transport::listen_unix(&directory.join("stream")).map_err(ServeError::Listen)?;
        let begun = begin(listener, &path, None)?;
        let control = UnixStream::connect(directory.join("control"))
            .await
            .map_err(ServeError::Dial)?;
        begun.serve(control, false).await
    })
}

/// One thread: there is little to do at once, and children are started from it. Those beside it wait for the kernel only, and are not
/// waited for at the end.
fn run(agent: impl Future<Output = Result<(), ServeError>>) -> Result<(), ServeError> {
    let limit = Rlimit {
        current: Some(DESCRIPTORS_MAX),
        maximum: Some(DESCRIPTORS_MAX),
    };
    setrlimit(Resource::Nofile, limit).map_err(ServeError::Descriptors)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(ServeError::Runtime)?;
    let result = runtime.block_on(agent);
    runtime.shutdown_background();
    result
}

/// An agent that can serve, and has not said so yet.
struct Begun {
    reaper: Reaper,
    settings: Settings,
    /// Writes limits and switches CPUs.
    writer: Worker,
}

fn begin(
    listener: transport::Listener,
    cgroups: &Path,
    reserve: Option<Reserve>,
) -> Result<Begun, ServeError> {
    let streams = Streams::new();
    let reaper = Reaper::new().map_err(ServeError::Runtime)?;
    tokio::spawn(streams.clone().serve(listener));
    let writer = Worker::start("writer").map_err(ServeError::Runtime)?;
    Ok(Begun {
        reaper,
        settings: Settings {
            cgroups: cgroups.to_owned(),
            reserve,
            streams,
            writer: writer.clone(),
            looker: Worker::start("looker").map_err(ServeError::Runtime)?,
        },
        writer,
    })
}

impl Begun {
    /// Until the connection ends or the host says so.
    async fn serve<S>(self, control: S, own_machine: bool) -> Result<(), ServeError>
    where
        S: AsyncRead + AsyncWrite + Send + Sync + Unpin + 'static,
    {
        let (sandbox, handle, events) = Sandbox::new(self.settings).map_err(ServeError::Runtime)?;
        let (control, end) = Watched::new(control);
        let writer = own_machine.then_some(self.writer);
        let service = create_agent(Arc::new(Server::new(handle.clone(), events, writer)));
        let connection = Listener::new(futures_util::stream::once(async { Ok(control) }));
        let mut server = Ttrpc::new()
            .add_listener(connection)
            .register_service(service);
        server.start().await.map_err(ServeError::Ttrpc)?;
        tokio::spawn(async move {
            // Either way of ending it, it has ended.
            let _ = end.await;
            handle.shut_down().await;
        });
        sandbox.run(self.reaper).await;
        Ok(())
    }
}
