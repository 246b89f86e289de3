//! The streams that the host opens: which connection belongs to which process.
//!
//! ```text
//!             host connects, sends the id          a process claims it
//! (none) ───────────────────────────────► arrived ─────────────────────► handed over
//!   │          a process claims it                    host connects
//!   └───────────────────────────────────► wanted ──────────────────────► handed over
//! ```
//!
//! Either side may come first. Both have [`CLAIM_DEADLINE`] to meet; then the connection is closed, or the process sees its stream end.
//!
//! The acceptor lives as long as the agent. Where it has no descriptor or memory for a connection it pauses and tries again; a connection that
//! does not say its id makes way for newer ones.

/// Who waits for whom.
mod table;

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use agent_api::StreamId;
use tokio::sync::oneshot;
use tokio::task::AbortHandle;
use tokio::time::timeout;

use crate::log::{line_of, warn};
use crate::stdio;
use crate::transport::{AcceptError, Listener, Socket};
use table::{Greeting, Table};

/// How long one side waits for the other.
pub(crate) const CLAIM_DEADLINE: Duration = Duration::from_secs(10);
/// Connections whose id is still being read: a burst of starts. The host sends an id with the connection, so that the oldest are those that
/// will not send one.
const HANDSHAKES_MAX: usize = 64;
/// How long nothing is accepted once there was no descriptor or memory for it: others may give some back meanwhile.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A stream to come.
pub(crate) type Claim = oneshot::Receiver<Socket>;

/// The streams of this sandbox.
#[derive(Clone, Debug)]
pub(crate) struct Streams {
    table: Arc<Mutex<Table<Socket>>>,
}

impl Streams {
    pub(crate) fn new() -> Self {
        Self {
            table: Arc::new(Mutex::new(Table::new())),
        }
    }

    fn table(&self) -> MutexGuard<'_, Table<Socket>> {
        // No code that holds the table can panic half-way through a change.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Claims a stream; the receiver fails at the deadline.
    pub(crate) fn claim(&self, id: StreamId) -> Claim {
        let claim = self.table().claim(id);
        self.expire_later(id);
        claim
    }

    fn expire_later(&self, id: StreamId) {
        let streams = self.clone();
        tokio::spawn(async move {
            tokio::time::sleep(CLAIM_DEADLINE).await;
            streams.table().expire(id);
        });
    }

    /// Takes the host's connections, for ever.
    pub(crate) async fn serve(self, listener: Listener) {
        let mut handshakes = Handshakes::default();
        loop {
            match listener.accept().await {
                Ok(socket) => handshakes.begin(&self, socket),
                Err(error @ AcceptError::Stranger(_)) => {
                    warn!("{error}");
                    // A guest that dials on and on must not keep the only thread.
                    tokio::task::yield_now().await;
                }
                Err(error) => {
                    warn!("{}", line_of(&error));
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    async fn handshake(&self, socket: Socket) -> io::Result<()> {
        let mut greeting = Greeting::default();
        let id = loop {
            match stdio::read(&socket, greeting.room()).await? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                count => greeting.came(count),
            }
            if let Some(said) = greeting.said() {
                break said.ok_or(io::ErrorKind::InvalidData)?;
            }
        };
        if self.table().arrive(id, socket).is_err() {
            // The id is a secret, and is not told.
            warn!("a stream was refused: it is there already, or too many wait");
            return Ok(());
        }
        self.expire_later(id);
        Ok(())
    }
}

/// Connections whose id is still being read, oldest first.
#[derive(Debug, Default)]
struct Handshakes(VecDeque<AbortHandle>);

impl Handshakes {
    fn begin(&mut self, streams: &Streams, socket: Socket) {
        self.0.retain(|handshake| !handshake.is_finished());
        if self.0.len() == HANDSHAKES_MAX
            && let Some(oldest) = self.0.pop_front()
        {
            warn!("a stream that had not said its id made way for a newer one");
            oldest.abort();
        }
        let streams = streams.clone();
        let handshake = tokio::spawn(async move {
            let said = timeout(CLAIM_DEADLINE, streams.handshake(socket)).await;
            if !matches!(said, Ok(Ok(()))) {
                warn!("a stream was closed before it had said its id");
            }
        });
        self.0.push_back(handshake.abort_handle());
    }
}
