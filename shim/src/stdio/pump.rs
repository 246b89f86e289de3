//! Moving bytes from one end to the other until one of them is done.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::watch;

use super::end::End;

/// Bytes held per stream, and only while they are on their way: an idle stream holds none.
const CHUNK_BYTES: usize = 32 * 1024;

/// What has become of an output so far.
#[derive(Debug, Default)]
pub(super) struct Progress {
    /// Bytes.
    delivered: watch::Sender<u64>,
    waits_for_outside: AtomicBool,
}

impl Progress {
    /// Bytes that the outside has.
    pub(super) fn delivered(&self) -> u64 {
        *self.delivered.borrow()
    }

    /// Waits until it has so many.
    pub(super) async fn reaches(&self, bytes: u64) {
        let mut delivered = self.delivered.subscribe();
        // The sender is here.
        let _ = delivered.wait_for(|now| *now >= bytes).await;
    }

    fn count(&self, bytes: usize) {
        let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
        self.delivered
            .send_modify(|delivered| *delivered = delivered.saturating_add(bytes));
    }

    /// Whether there are bytes that the outside does not take.
    pub(super) fn waits_for_outside(&self) -> bool {
        self.waits_for_outside.load(Ordering::Relaxed)
    }
}

/// Outside to guest. Ends with the input, or when the guest has closed the stream.
pub(super) async fn input(from: End, guest: End) {
    let result = tokio::select! {
        result = copy(&from, &guest, None) => result,
        () = guest.closed() => Ok(()),
    };
    log_unless_closed(result);
    guest.shut_down_writing();
}

/// Outside to a guest's terminal, whose output comes back on the same stream. Ends with the input: the guest's terminal is hung up if the
/// outside's is.
pub(super) async fn keys(from: End, guest: Arc<End>) {
    // A terminal that is hung up does not say any more that it is one.
    let is_terminal = from.is_terminal();
    log_unless_closed(copy(&from, &guest, None).await);
    if is_terminal && from.has_hung_up() {
        guest.shut_down();
    } else {
        guest.shut_down_writing();
    }
}

/// Guest to outside; without an outside the bytes are dropped. When nobody reads, both ends are closed on return.
pub(super) async fn output(guest: Arc<End>, to: Option<End>, progress: Arc<Progress>) {
    match to {
        Some(to) => log_unless_closed(copy(&guest, &to, Some(&progress)).await),
        None => log_unless_closed(discard(&guest, &progress).await),
    }
}

async fn copy(from: &End, to: &End, progress: Option<&Progress>) -> io::Result<()> {
    loop {
        from.readable().await?;
        let mut chunk = vec![0; CHUNK_BYTES];
        loop {
            match from.read(&mut chunk).await {
                Ok(0) => return Ok(()),
                Ok(length) => deliver(to, &chunk[..length], progress).await?,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
            // One stream that never runs dry must not keep the others waiting.
            tokio::task::yield_now().await;
        }
    }
}

async fn deliver(to: &End, bytes: &[u8], progress: Option<&Progress>) -> io::Result<()> {
    let Some(progress) = progress else {
        return to.write_all(bytes).await;
    };
    progress.waits_for_outside.store(true, Ordering::Relaxed);
    to.write_all(bytes).await?;
    progress.waits_for_outside.store(false, Ordering::Relaxed);
    progress.count(bytes.len());
    Ok(())
}

async fn discard(from: &End, progress: &Progress) -> io::Result<()> {
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        from.readable().await?;
        match from.read(&mut chunk).await {
            Ok(0) => return Ok(()),
            Ok(length) => progress.count(length),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            Err(e) => return Err(e),
        }
    }
}

/// A side that went away is how streams end; anything else is worth a line.
fn log_unless_closed(result: io::Result<()>) {
    match result {
        Err(e)
            if !matches!(
                e.kind(),
                io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset
            ) =>
        {
            tracing::warn!("a stream ended early: {e}");
        }
        _ => {}
    }
}
