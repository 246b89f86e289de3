//! The other side of the supervisor's socket: start a supervisor, connect to one.

use std::io;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use containerd_shim_protos::shim_async::TaskClient;
use tokio::io::AsyncReadExt as _;
use tokio::net::UnixStream;
use tokio::net::unix::pipe;
use ttrpc::asynchronous::Client;
use ttrpc::asynchronous::transport::Socket;

use super::{SERVING, StartArgs, logs_to_caller};
use crate::inherited;
use crate::inspect::InspectClient;
use crate::state::{StateDir, StateError};

/// More than any error says.
const WORDS_MAX_BYTES: u64 = 64 * 1024;

/// A connected supervisor.
pub(crate) struct Supervisor {
    /// containerd's Task API.
    pub(crate) tasks: TaskClient,
    /// What the Task API has no method for.
    pub(crate) inspect: InspectClient,
}

impl std::fmt::Debug for Supervisor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Supervisor").finish_non_exhaustive()
    }
}

/// Why there is no supervisor to talk to.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    #[error("cannot start a supervisor")]
    Spawn(#[source] io::Error),
    #[error("cannot hear from the new supervisor")]
    Listen(#[source] io::Error),
    /// Its own words.
    #[error("{0}")]
    Refused(String),
    #[error("the new supervisor ended without a word")]
    Silent,
    #[error(transparent)]
    State(#[from] StateError),
    #[error("cannot connect to the supervisor of {id}")]
    Connect {
        id: String,
        #[source]
        source: io::Error,
    },
}

/// Starts a supervisor in the background and connects to it.
pub(crate) async fn start(args: &StartArgs<'_>) -> Result<Supervisor, StartError> {
    let mut command = Command::new("/proc/self/exe");
    // As it is to be seen among the processes of the host.
    command.arg0("husk");
    command
        .args(args.options.to_args().map_err(StartError::Spawn)?)
        .args(["serve", args.id])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(if logs_to_caller(args.options, args.owner) {
            Stdio::inherit()
        } else {
            Stdio::null()
        });
    // What the command line reports is waited for by its callers.
    command.arg("--report-own-pid");
    if args.end_with_container {
        command.arg("--end-with-container");
    }
    if let Some(owner) = args.owner {
        command.args(["--owner", &owner.to_string()]);
    }
    inherited::close_on_exec().map_err(StartError::Spawn)?;
    let mut child = command.spawn().map_err(StartError::Spawn)?;
    let words = child.stdout.take().ok_or(StartError::Silent)?;
    match hear(words.into()).await.map_err(StartError::Listen)?.trim() {
        SERVING => reach(&StateDir::open(&args.options.root, args.id)?, args.id),
        "" => Err(StartError::Silent),
        error => Err(StartError::Refused(error.to_owned())),
    }
}

async fn hear(words: std::os::fd::OwnedFd) -> io::Result<String> {
    let mut text = String::new();
    pipe::Receiver::from_owned_fd(words)?
        .take(WORDS_MAX_BYTES)
        .read_to_string(&mut text)
        .await?;
    Ok(text)
}

/// Connects to the supervisor of the sandbox that container `id` is in.
pub(crate) async fn connect(root: &Path, id: &str) -> Result<Supervisor, StartError> {
    let mut state = StateDir::open(root, id)?;
    if let Some(sandbox) = state.read()?.and_then(|record| record.sandbox) {
        state = StateDir::open(root, &sandbox)?;
    }
    reach(&state, id)
}

fn reach(state: &StateDir, id: &str) -> Result<Supervisor, StartError> {
    let stream = dial(state).map_err(|source| StartError::Connect {
        id: id.to_owned(),
        source,
    })?;
    let client = Client::new(Socket::from(stream));
    Ok(Supervisor {
        tasks: TaskClient::new(client.clone()),
        inspect: InspectClient::new(client),
    })
}

fn dial(state: &StateDir) -> io::Result<UnixStream> {
    let stream = StdUnixStream::connect(state.socket())?;
    stream.set_nonblocking(true)?;
    UnixStream::from_std(stream)
}
