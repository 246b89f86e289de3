//! One output stream of a process, from its exit on: what is owed to the outside, and what becomes of the rest.
//!
//! ```text
//!   exited ─┬─ what the process has written is delivered ─► left: others in the guest have the stream open, and may write on
//!           ├─ the stream stands still ───────────────────► left
//!           └─ its end ───────────────────────────────────► (none)
//! ```
//!
//! How much the process has written is the agent's word. A terminal tells no amount, and is owed what can be on its way. What is left goes on as
//! long as the container: to the outside where that is a descriptor that was lent, as if the guest's process had it itself; a FIFO is closed, since
//! whoever reads it waits for that, and what still comes is dropped.

use std::collections::VecDeque;
use std::sync::{Arc, Weak};

use tokio::task::{JoinHandle, JoinSet};

use super::end::End;
use super::pump::{self, Progress};
use super::{Lender, ProcessStreams};
use crate::deadlines::DRAIN;

/// Outputs of one container that outlive their process. Each costs a connection and two buffers of 64 KiB, here and in the guest.
pub(super) const LEFT_MAX: usize = 128;

/// On its way between a guest's terminal and the outside: its buffers (64 KiB), the agent's (64 KiB), those of both sockets and of the connection
/// (256 KiB each), and a chunk here.
const IN_FLIGHT_MAX_BYTES: u64 = 1024 * 1024;

/// So many times [`DRAIN`] the guest is waited for, though its stream moves: a guest that lies of an amount holds up nobody.
const GUEST_WAITS_MAX: u32 = 3;

/// Which output of its process it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Stdout,
    Stderr,
    Terminal,
}

/// See the module. Dropped, it is closed.
#[derive(Debug)]
pub(super) struct Output {
    pub(super) kind: Kind,
    /// Bytes that the process had written when it exited.
    pub(super) owed: Option<u64>,
    pump: JoinHandle<()>,
    progress: Arc<Progress>,
    guest: Weak<End>,
    /// The outside is a descriptor that was lent.
    is_lent: bool,
}

/// Outputs of processes that are gone, and which others in the guest have open.
#[derive(Debug, Default)]
pub(crate) struct LeftOutputs(VecDeque<Output>);

impl Output {
    /// Begins to move bytes.
    pub(super) fn start(kind: Kind, guest: Arc<End>, to: Option<End>, is_lent: bool) -> Self {
        let progress = Arc::new(Progress::default());
        let weak = Arc::downgrade(&guest);
        Self {
            kind,
            owed: None,
            pump: tokio::spawn(pump::output(guest, to, progress.clone())),
            progress,
            guest: weak,
            is_lent,
        }
    }

    /// Waits for the stream's end, which is near: all that could write to it has ended. One that stands still for [`DRAIN`] is given up, unless
    /// it is only the outside that does not read and `lender` is alive.
    pub(super) async fn deliver_all(mut self, lender: Option<Arc<Lender>>) {
        let mut before = self.progress.delivered();
        while tokio::time::timeout(DRAIN, &mut self.pump).await.is_err() {
            let now = self.progress.delivered();
            if now == before && !self.may_wait(lender.as_deref()) {
                return tracing::warn!("an output stream stood still after its process had exited");
            }
            before = now;
        }
    }

    /// Waits until what the process has written is delivered, or is given up as in [`Self::deliver_all`]. Returns the stream if it has not ended.
    async fn deliver_owed(mut self, lender: Option<Arc<Lender>>) -> Option<Self> {
        let in_flight = self
            .progress
            .delivered()
            .saturating_add(IN_FLIGHT_MAX_BYTES);
        let owed = self.owed.unwrap_or(in_flight);
        let mut guest_waits = 0;
        loop {
            let before = self.progress.delivered();
            tokio::select! {
                biased;
                _ = &mut self.pump => return None,
                () = self.progress.reaches(owed) => return Some(self),
                () = tokio::time::sleep(DRAIN) => {}
            }
            if self.may_wait(lender.as_deref()) {
                continue;
            }
            guest_waits += u32::from(!self.progress.waits_for_outside());
            if self.progress.delivered() == before || guest_waits == GUEST_WAITS_MAX {
                tracing::warn!(
                    "an output stream is not waited for any more: its process has exited"
                );
                return Some(self);
            }
        }
    }

    fn may_wait(&self, lender: Option<&Lender>) -> bool {
        self.progress.waits_for_outside() && lender.is_some_and(Lender::is_alive)
    }

    /// What it is when its process is gone.
    fn left(mut self) -> Option<Self> {
        if !self.is_lent {
            let guest = self.guest.upgrade()?;
            self.pump.abort();
            self.pump = tokio::spawn(pump::output(guest, None, self.progress.clone()));
        }
        Some(self)
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        self.pump.abort();
    }
}

impl LeftOutputs {
    /// Of one process, once its own output is delivered.
    pub(super) async fn of(outputs: Vec<Output>, lender: Option<Arc<Lender>>) -> Self {
        let mut deliveries = JoinSet::new();
        for output in outputs {
            deliveries.spawn(output.deliver_owed(lender.clone()));
        }
        let open = deliveries.join_all().await.into_iter().flatten();
        Self(open.filter_map(Output::left).collect())
    }

    /// Keeps `more`, too. Where there are too many the oldest are closed.
    pub(crate) fn add(&mut self, more: Self) {
        self.0.retain(|output| !output.pump.is_finished());
        self.0.extend(more.0);
        while self.0.len() > LEFT_MAX {
            tracing::warn!("an output whose process is gone made way for a newer one");
            self.0.pop_front();
        }
    }

    /// To be delivered to their ends.
    pub(crate) fn take(&mut self) -> ProcessStreams {
        let mut streams = ProcessStreams::default();
        streams.outputs.extend(std::mem::take(&mut self.0));
        streams
    }
}
