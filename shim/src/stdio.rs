//! A process's standard streams: the outside's descriptors on one side, one vsock connection each on the other.
//!
//! ```text
//!   FIFO, fd of the CLI ──► End ──► pump ──► End (socketpair) ──► VMM ──► vsock ──► agent ──► process
//!                       ◄──     ◄──      ◄──
//! ```
//!
//! A stream is opened with its 8-byte id and is then plain bytes, half-close included. The id is a random number that only
//! supervisor and agent know, since any process of the guest that gets at the port could name it. What each end's closing does:
//!
//! - outside ends its input: the process reads to the end, then end-of-file;
//! - [`ProcessStreams::close_stdin`]: the same, after what is in the FIFO;
//! - the process closes its output: the outside descriptor is closed;
//! - the outside reader goes away: the stream is closed, so that the process gets `EPIPE`.
//!
//! Backpressure is one chunk per stream here, then the guest's vsock credit. After the process has exited, what it has written is delivered
//! ([`ProcessStreams::drain_owed`], for a container [`ProcessStreams::drain`]); only a stream that stands still is given up. What others in the guest
//! write to it afterwards goes on until the container ends ([`LeftOutputs`]).

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;

use agent_api::{PORT_STREAM, StreamId};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::rand::{GetRandomFlags, getrandom};
use tokio::task::{JoinHandle, JoinSet};

use crate::guest::events::Carried;
use crate::vm::{Control, ControlError};

mod console;
mod end;
mod output;
mod outside;
mod pump;
mod screen;

pub(crate) use console::Console;
use end::End;
pub(crate) use output::LeftOutputs;
use output::{Kind, Output};
use outside::Keeper;
pub(crate) use outside::{Lender, Outside, OutsideError, lent_name};
use screen::Screen;
pub(crate) use screen::Window;

/// What the caller of the Task API wants a process's streams to be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Stdio {
    pub(crate) terminal: bool,
    /// A FIFO's path, [`lent_name`], or empty for none; so are the others.
    pub(crate) stdin: String,
    pub(crate) stdout: String,
    /// Not used with a terminal.
    pub(crate) stderr: String,
}

/// Why a process's streams cannot be set up.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StdioError {
    #[error(transparent)]
    Outside(#[from] OutsideError),
    #[error("cannot open a stream to the guest")]
    Connect(#[from] ControlError),
    #[error("cannot make a stream")]
    Io(#[from] io::Error),
    #[error("cannot get random bytes for a stream's id")]
    Random(#[source] Errno),
}

/// The streams of one process, running.
#[derive(Debug, Default)]
pub(crate) struct ProcessStreams {
    /// Ends with the input, or is ended when the process exits.
    input: Option<JoinHandle<()>>,
    outputs: Vec<Output>,
    /// Keeps a FIFO open for writing until the caller closes the process's input.
    keeper: Option<Keeper>,
    lender: Option<Lender>,
    console: Option<Console>,
    /// Of a terminal.
    screen: Option<Screen>,
}

/// The ids of one process's streams.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Ids {
    pub(crate) stdin: Option<StreamId>,
    pub(crate) stdout: Option<StreamId>,
    pub(crate) stderr: Option<StreamId>,
    pub(crate) terminal: Option<StreamId>,
}

impl Ids {
    /// New random ids for the streams that `stdio` has.
    pub(crate) fn random(stdio: &Stdio) -> Result<Self, StdioError> {
        let next = |wanted: bool| match wanted {
            true => random_id().map(Some),
            false => Ok(None),
        };
        if stdio.terminal {
            return Ok(Self {
                terminal: next(true)?,
                ..Self::default()
            });
        }
        Ok(Self {
            stdin: next(!stdio.stdin.is_empty())?,
            stdout: next(!stdio.stdout.is_empty())?,
            stderr: next(!stdio.stderr.is_empty())?,
            terminal: None,
        })
    }
}

/// From the kernel's generator, which gives so few bytes at once and without waiting.
fn random_id() -> Result<StreamId, StdioError> {
    loop {
        let mut bytes = [0; 8];
        let filled = getrandom(&mut bytes, GetRandomFlags::empty()).map_err(StdioError::Random)?;
        let whole = filled == bytes.len();
        if let Some(id) = StreamId::new(u64::from_le_bytes(bytes)).filter(|_| whole) {
            return Ok(id);
        }
    }
}

impl From<Ids> for agent_api::agent::Streams {
    fn from(ids: Ids) -> Self {
        let number = |id: Option<StreamId>| id.map_or(0, StreamId::get);
        Self {
            stdin: number(ids.stdin),
            stdout: number(ids.stdout),
            stderr: number(ids.stderr),
            terminal: number(ids.terminal),
            ..Self::default()
        }
    }
}

impl ProcessStreams {
    /// Connects each stream to the guest and begins to move bytes.
    pub(crate) async fn open(
        control: &Control,
        ids: Ids,
        outside: Outside,
    ) -> Result<Self, StdioError> {
        let mut streams = Self {
            input: None,
            outputs: Vec::new(),
            keeper: outside.keeper,
            console: outside.console,
            screen: outside.screen,
            lender: outside.lender,
        };
        if let Some(id) = ids.terminal {
            let guest = Arc::new(connect(control, id).await?);
            streams.add_output(Kind::Terminal, guest.clone(), outside.stdout);
            if let Some(from) = outside.stdin {
                streams.input = Some(tokio::spawn(pump::keys(from, guest)));
            }
            return Ok(streams);
        }
        if let Some(id) = ids.stdout {
            let guest = Arc::new(connect(control, id).await?);
            streams.add_output(Kind::Stdout, guest, outside.stdout);
        }
        if let Some(id) = ids.stderr {
            let guest = Arc::new(connect(control, id).await?);
            streams.add_output(Kind::Stderr, guest, outside.stderr);
        }
        if let Some(id) = ids.stdin {
            let guest = connect(control, id).await?;
            if let Some(from) = outside.stdin {
                streams.input = Some(tokio::spawn(pump::input(from, guest)));
            }
        }
        Ok(streams)
    }

    fn add_output(&mut self, kind: Kind, guest: Arc<End>, to: Option<End>) {
        let is_lent = self.lender.is_some();
        self.outputs.push(Output::start(kind, guest, to, is_lent));
    }

    /// How the terminal is shown now, if that is known.
    pub(crate) fn window(&self) -> Option<Window> {
        self.screen.as_ref().map(Screen::window)
    }

    /// The process has exited, and had put out so much.
    pub(crate) fn owe(&mut self, carried: Carried) {
        for output in &mut self.outputs {
            output.owed = match output.kind {
                Kind::Stdout => carried.stdout,
                Kind::Stderr => carried.stderr,
                Kind::Terminal => None,
            };
        }
    }

    /// What is left of others is delivered with it.
    pub(crate) fn take_over(&mut self, mut other: Self) {
        self.outputs.append(&mut other.outputs);
    }

    /// The process that lent its descriptors.
    pub(crate) fn lender(&self) -> Option<&Lender> {
        self.lender.as_ref()
    }

    /// The terminal whose size is to be followed.
    pub(crate) fn take_console(&mut self) -> Option<Console> {
        self.console.take()
    }

    /// The caller will write no more. What is in its FIFO is still delivered.
    pub(crate) fn close_stdin(&mut self) {
        self.keeper = None;
    }

    /// The process has exited: nobody reads its input any more.
    pub(crate) fn end_input(&mut self) {
        self.keeper = None;
        if let Some(input) = self.input.take() {
            input.abort();
        }
    }

    /// Waits until all output of a container is delivered, which ends with its processes.
    pub(crate) async fn drain(mut self) {
        self.end_input();
        let lender = self.lender.take().map(Arc::new);
        let mut deliveries = JoinSet::new();
        for output in std::mem::take(&mut self.outputs) {
            deliveries.spawn(output.deliver_all(lender.clone()));
        }
        deliveries.join_all().await;
    }

    /// Waits until what the process has written is delivered. Returns the outputs that others have open.
    pub(crate) async fn drain_owed(mut self) -> LeftOutputs {
        self.end_input();
        let lender = self.lender.take().map(Arc::new);
        LeftOutputs::of(std::mem::take(&mut self.outputs), lender).await
    }
}

impl Drop for ProcessStreams {
    fn drop(&mut self) {
        self.end_input();
    }
}

/// Opens the stream `id` to the guest.
async fn connect(control: &Control, id: StreamId) -> Result<End, StdioError> {
    let (near, far) = rustix::net::socketpair(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )
    .map_err(io::Error::from)?;
    introduce(&near, id)?;
    control.connect(PORT_STREAM, far).await?;
    Ok(End::socket(near)?)
}

/// Eight bytes fit into an empty socket at once.
fn introduce(stream: &OwnedFd, id: StreamId) -> io::Result<()> {
    let flags = rustix::net::SendFlags::NOSIGNAL;
    rustix::net::send(stream.as_fd(), &id.get().to_le_bytes(), flags)?;
    Ok(())
}

#[cfg(test)]
mod tests;
