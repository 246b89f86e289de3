//! The thread that runs a started device: it sleeps in epoll until a queue is kicked, a file of the device is ready, or it is told to stop.
//!
//! ```text
//!   spawn ──► confine the thread ──► register ──► wait ◄──► ready(token) ──► (stop requested | error) ──► the handler comes back
//! ```
//!
//! The handler owns the queues. It moves into the thread and comes back from [`Worker::stop`], so a stopped device is whole again. A handler
//! that fails reports once, raises `failed`, and then waits to be stopped.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
#[cfg(not(fuzzing))]
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
#[cfg(not(fuzzing))]
use std::sync::mpsc::{Receiver, SendError, sync_channel};
#[cfg(not(fuzzing))]
use std::thread::{self, JoinHandle};

use rustix::event::{Timespec, epoll};

#[cfg(not(fuzzing))]
use crate::Event;
#[cfg(not(fuzzing))]
use crate::device::Confine;
use crate::device::StartError;

/// A worker without a thread, for fuzzing.
#[cfg(fuzzing)]
mod inline;
#[cfg(fuzzing)]
pub use inline::{Worker, turn};

/// The token of the stop event; a handler's own are below it.
#[cfg(not(fuzzing))]
const STOP: u64 = u64::MAX;
/// How many ready files are taken from epoll at once; more wait for the next turn.
const READY_MAX: usize = 32;
/// How often one device says in the log that it gave up: a guest can reset and break it again as often as it likes.
const REPORTS_MAX: u32 = if cfg!(fuzzing) { 0 } else { 8 };
/// Devices recurse little and keep their buffers on the heap.
#[cfg(not(fuzzing))]
const STACK_BYTES: usize = 128 * 1024;

/// What runs in a worker.
pub trait Handler: Send + 'static {
    /// Why it cannot go on.
    type Error: std::error::Error;

    /// Adds the files to wait for. Called once, in the thread, before the first [`Handler::ready`]; the place to look at what is there already.
    fn register(&mut self, poller: &Poller) -> Result<(), Self::Error>;

    /// A file is ready. Must return soon: neither wait for the guest nor for a peer.
    fn ready(&mut self, token: u64, poller: &Poller) -> Result<(), Self::Error>;
}

/// The files a worker waits for.
#[derive(Debug)]
pub struct Poller {
    epoll: OwnedFd,
}

impl Poller {
    fn new() -> io::Result<Self> {
        Ok(Self {
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
        })
    }

    /// Waits for `file` to be readable. `token` comes back in [`Handler::ready`].
    pub fn add(&self, file: impl AsFd, token: u64) -> io::Result<()> {
        self.add_for(file, token, epoll::EventFlags::IN)
    }

    /// Waits for `file` with flags of the caller's choice.
    pub fn add_for(&self, file: impl AsFd, token: u64, flags: epoll::EventFlags) -> io::Result<()> {
        Ok(epoll::add(
            &self.epoll,
            file,
            epoll::EventData::new_u64(token),
            flags,
        )?)
    }

    /// Changes what is waited for.
    pub fn modify(&self, file: impl AsFd, token: u64, flags: epoll::EventFlags) -> io::Result<()> {
        Ok(epoll::modify(
            &self.epoll,
            file,
            epoll::EventData::new_u64(token),
            flags,
        )?)
    }

    /// Stops waiting for `file`.
    pub fn remove(&self, file: impl AsFd) -> io::Result<()> {
        Ok(epoll::delete(&self.epoll, file)?)
    }

    /// Fills `tokens` with those of files that are ready. Without a `timeout` it waits for one.
    fn wait(&self, tokens: &mut Vec<u64>, timeout: Option<&Timespec>) -> io::Result<()> {
        let mut events = Vec::with_capacity(READY_MAX);
        loop {
            match epoll::wait(
                &self.epoll,
                rustix::buffer::spare_capacity(&mut events),
                timeout,
            ) {
                Ok(_) => break,
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        tokens.clear();
        tokens.extend(events.iter().map(|event| event.data.u64()));
        Ok(())
    }
}

/// A running worker.
#[cfg(not(fuzzing))]
#[derive(Debug)]
pub struct Worker<H> {
    /// None of one that was never given its handler.
    thread: JoinHandle<Option<H>>,
    stop: Event,
}

/// A handler that no thread runs.
#[derive(Debug)]
pub struct Unstarted<H> {
    /// The handler, as it was given.
    pub handler: H,
    /// Why.
    pub error: StartError,
}

#[cfg(not(fuzzing))]
impl<H: Handler> Worker<H> {
    /// Starts a thread that confines itself and then runs `handler`. `failed` is raised if the handler gives up.
    ///
    /// # Errors
    /// The host refuses a thread or a file; the handler comes back with that.
    pub fn spawn(
        name: &'static str,
        handler: H,
        confine: Confine,
        failed: Arc<Failure>,
    ) -> Result<Self, Unstarted<H>> {
        // The thread is made before it is given its handler, so that one which is not made takes
        // none with it.
        let (give, taken) = sync_channel(1);
        let unstarted = |handler, source| Unstarted {
            handler,
            error: StartError::Worker { name, source },
        };
        let worker = match Self::spawn_for(name, taken, confine, failed) {
            Ok(worker) => worker,
            Err(source) => return Err(unstarted(handler, source)),
        };
        match give.send(handler) {
            Ok(()) => Ok(worker),
            Err(SendError(handler)) => Err(unstarted(handler, io::ErrorKind::BrokenPipe.into())),
        }
    }

    fn spawn_for(
        name: &'static str,
        handler: Receiver<H>,
        confine: Confine,
        failed: Arc<Failure>,
    ) -> io::Result<Self> {
        let stop = Event::new()?;
        let stop_seen = stop.try_clone()?;
        let poller = Poller::new()?;
        poller.add(&stop_seen, STOP)?;
        let thread = thread::Builder::new()
            .name(name.to_owned())
            .stack_size(STACK_BYTES)
            .spawn(move || {
                let mut handler = handler.recv().ok()?;
                if let Err(error) = run(name, &mut handler, &poller, &confine) {
                    failed.report(name, &error);
                    wait_for_stop(&stop_seen);
                }
                Some(handler)
            })?;
        Ok(Self { thread, stop })
    }

    /// Stops the thread and returns its handler. None if the thread panicked, which aborts the process where panics do.
    pub fn stop(self) -> Option<H> {
        self.stop.signal().ok()?;
        self.thread.join().ok()?
    }
}

/// A device's word that it cannot go on, shared with its transport.
#[derive(Debug, Default)]
pub struct Failure {
    raised: AtomicBool,
    reports: AtomicU32,
}

impl Failure {
    /// Whether the device has given up since it was last started.
    #[must_use]
    pub fn is_raised(&self) -> bool {
        self.raised.load(Ordering::SeqCst)
    }

    /// At a reset.
    pub fn clear(&self) {
        self.raised.store(false, Ordering::SeqCst);
    }

    /// Raises it, and says why while there is room in the log.
    pub(crate) fn report(&self, name: &str, error: &dyn std::error::Error) {
        self.raised.store(true, Ordering::SeqCst);
        if self.reports.fetch_add(1, Ordering::SeqCst) < REPORTS_MAX {
            eprintln!("husk-vmm: device {name} stopped: {}", chain_of(error));
        }
    }
}

#[cfg(not(fuzzing))]
fn run<H: Handler>(
    name: &'static str,
    handler: &mut H,
    poller: &Poller,
    confine: &Confine,
) -> Result<(), RunError<H::Error>> {
    confine.enter(name).map_err(RunError::Confine)?;
    handler.register(poller).map_err(RunError::Handler)?;
    let mut tokens = Vec::with_capacity(READY_MAX);
    loop {
        poller.wait(&mut tokens, None).map_err(RunError::Wait)?;
        for token in &tokens {
            if *token == STOP {
                return Ok(());
            }
            handler.ready(*token, poller).map_err(RunError::Handler)?;
        }
    }
}

#[derive(Debug, thiserror::Error)]
enum RunError<E: std::error::Error> {
    #[error("confine the thread")]
    Confine(#[source] io::Error),
    #[error("wait for events")]
    Wait(#[source] io::Error),
    #[error("{0}")]
    Handler(E),
}

#[cfg(not(fuzzing))]
fn wait_for_stop(stop: &Event) {
    let mut files = [rustix::event::PollFd::new(
        stop,
        rustix::event::PollFlags::IN,
    )];
    while rustix::event::poll(&mut files, None) == Err(rustix::io::Errno::INTR) {}
}

fn chain_of(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
