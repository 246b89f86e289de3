//! A worker that has no thread and runs in [`turn`]: an input of a fuzzer does the same whenever it
//! is run.

use std::cell::RefCell;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use rustix::event::Timespec;

use super::{Failure, Handler, Poller, READY_MAX, RunError, Unstarted};
use crate::device::{Confine, StartError};

thread_local! {
    /// Those that were spawned here. One that was stopped or dropped is no more.
    static WORKERS: RefCell<Vec<Weak<dyn Turn>>> = const { RefCell::new(Vec::new()) };
}

const NOW: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 0,
};

/// A worker that may have something to do.
#[derive(Debug)]
pub struct Worker<H> {
    place: Arc<Mutex<Option<Running<H>>>>,
}

/// What a thread would have.
#[derive(Debug)]
struct Running<H> {
    name: &'static str,
    handler: H,
    poller: Poller,
    confine: Confine,
    failed: Arc<Failure>,
    registered: bool,
    given_up: bool,
}

/// One look at what is ready; true if there was anything.
trait Turn {
    fn turn(&self) -> bool;
}

/// Lets every worker look once at what is ready. True if one of them found anything.
pub fn turn() -> bool {
    let workers = WORKERS.with_borrow_mut(|workers| {
        workers.retain(|worker| worker.strong_count() > 0);
        workers.clone()
    });
    let workers = workers.iter().filter_map(Weak::upgrade);
    workers.fold(false, |any, worker| worker.turn() | any)
}

impl<H: Handler> Worker<H> {
    /// A worker that confines the thread and begins at the next turn, as one with a thread does
    /// sooner or later.
    pub fn spawn(
        name: &'static str,
        handler: H,
        confine: Confine,
        failed: Arc<Failure>,
    ) -> Result<Self, Unstarted<H>> {
        let poller = match Poller::new() {
            Ok(poller) => poller,
            Err(source) => {
                let error = StartError::Worker { name, source };
                return Err(Unstarted { handler, error });
            }
        };
        let place = Arc::new(Mutex::new(Some(Running {
            name,
            handler,
            poller,
            confine,
            failed,
            registered: false,
            given_up: false,
        })));
        let turns: Arc<dyn Turn> = Arc::<Mutex<Option<Running<H>>>>::clone(&place);
        WORKERS.with_borrow_mut(|workers| workers.push(Arc::downgrade(&turns)));
        Ok(Self { place })
    }

    /// Ends the worker and returns its handler.
    pub fn stop(self) -> Option<H> {
        let running = lock(&self.place).take();
        running.map(|running| running.handler)
    }
}

impl<H: Handler> Turn for Mutex<Option<Running<H>>> {
    fn turn(&self) -> bool {
        let mut place = lock(self);
        let Some(running) = place.as_mut().filter(|running| !running.given_up) else {
            return false;
        };
        match running.turn() {
            Ok(any) => any,
            Err(error) => {
                running.given_up = true;
                running.failed.report(running.name, &error);
                true
            }
        }
    }
}

impl<H: Handler> Running<H> {
    fn turn(&mut self) -> Result<bool, RunError<H::Error>> {
        if !self.registered {
            self.registered = true;
            self.confine.enter(self.name).map_err(RunError::Confine)?;
            self.handler
                .register(&self.poller)
                .map_err(RunError::Handler)?;
            return Ok(true);
        }
        let mut tokens = Vec::with_capacity(READY_MAX);
        self.poller
            .wait(&mut tokens, Some(&NOW))
            .map_err(RunError::Wait)?;
        for token in &tokens {
            self.handler
                .ready(*token, &self.poller)
                .map_err(RunError::Handler)?;
        }
        Ok(!tokens.is_empty())
    }
}

fn lock<T>(place: &Mutex<T>) -> MutexGuard<'_, T> {
    place.lock().unwrap_or_else(PoisonError::into_inner)
}
