//! Work that a file system can hold up, off the runtime's thread.
//!
//! ```text
//!   runtime thread ── a job ──► queue ──► an idle thread, or a new one ── its result ──► whoever asked
//!                                             └─ the file system does not answer: the deadline is told of, the thread stays behind
//! ```
//!
//! The kernel lets a process wait for a network's file system, or for one that a process serves, for as long as that likes; one call of the kind on the
//! runtime's thread would stop every container of the sandbox. The threads share the runtime thread's mount namespace, which is the sandbox's own. Jobs have no
//! order among each other: who needs one awaits the first before the second. Ways to fail: [`StorageError`].

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::oneshot;

use crate::deadlines::STORAGE;

/// Threads at a time, for jobs and for streams. Each of a few file systems that hang can hold up some jobs before all are held up.
const THREADS_MAX: usize = 32;

/// Jobs that wait for a thread. More than all containers of a pod have at once.
const WAITING_MAX: usize = 256;

/// An idle thread ends after this: most sandboxes have work at their beginning and end only.
const IDLE: Duration = Duration::from_secs(5);

/// Enough for reading a configuration, whose depth has a bound.
const STACK_BYTES: usize = 512 * 1024;

/// See the module; clones are the same threads. Streams have threads of their own: they may be kept waiting for as long as they last.
#[derive(Clone, Debug, Default)]
pub(crate) struct Storage {
    jobs: Pool,
    streams: Pool,
}

#[derive(Clone, Debug, Default)]
struct Pool(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    arrived: Condvar,
}

type Job = Box<dyn FnOnce() + Send>;

#[derive(Default)]
struct State {
    waiting: VecDeque<Job>,
    threads: usize,
    idle: usize,
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (waiting, threads) = (self.waiting.len(), self.threads);
        write!(f, "{waiting} jobs, {threads} threads")
    }
}

/// Why work was not done, or is not known to be.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StorageError {
    #[error("the file system of {what} does not answer")]
    TimedOut { what: String },
    #[error("too much waits for file systems that do not answer")]
    Busy,
    #[error("cannot make a thread")]
    Thread(#[source] io::Error),
    /// It has panicked.
    #[error("the work on {what} broke off")]
    Broken { what: String },
}

impl Storage {
    /// Does `work` on `what`, which an error names. Its result is dropped when it comes too late.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        what: &str,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, StorageError> {
        self.run_or_undo(what, work, drop).await
    }

    /// The same for work whose result must not be dropped: `undo` is done with one that comes too late.
    pub(crate) async fn run_or_undo<T: Send + 'static>(
        &self,
        what: &str,
        work: impl FnOnce() -> T + Send + 'static,
        undo: fn(T),
    ) -> Result<T, StorageError> {
        let mut answered = self.jobs.begin(work, undo)?;
        if let Ok(done) = tokio::time::timeout(STORAGE, &mut answered).await {
            return done.map_err(|_| broken(what));
        }
        // One that comes from now on meets a closed door, and is undone; this one has come.
        answered.close();
        answered
            .try_recv()
            .map_err(|_| StorageError::TimedOut { what: what.into() })
    }

    /// The same without a deadline: for streams, whose other side may take its time.
    pub(crate) async fn run_unhurried<T: Send + 'static>(
        &self,
        what: &str,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, StorageError> {
        self.streams
            .begin(work, drop)?
            .await
            .map_err(|_| broken(what))
    }

    /// Does work whose end is of no interest, or where that is not possible drops it.
    pub(crate) fn leave(&self, work: impl FnOnce() + Send + 'static) {
        if let Err(error) = self.streams.submit(Box::new(work)) {
            tracing::warn!("work is not done in the background: {error}");
        }
    }
}

impl Pool {
    fn begin<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
        undo: fn(T),
    ) -> Result<oneshot::Receiver<T>, StorageError> {
        let (answer, answered) = oneshot::channel();
        let runtime = Handle::current();
        self.submit(Box::new(move || {
            // It waited for a thread for too long: nobody wants it any more.
            if answer.is_closed() {
                return;
            }
            let _entered = runtime.enter();
            if let Err(late) = answer.send(work()) {
                undo(late);
            }
        }))?;
        Ok(answered)
    }

    fn submit(&self, job: Job) -> Result<(), StorageError> {
        let mut state = self.0.state();
        if state.waiting.len() >= state.idle && state.threads < THREADS_MAX {
            let shared = self.0.clone();
            thread::Builder::new()
                .name("storage".into())
                .stack_size(STACK_BYTES)
                .spawn(move || shared.work())
                .map_err(StorageError::Thread)?;
            state.threads += 1;
        } else if state.waiting.len() >= WAITING_MAX {
            return Err(StorageError::Busy);
        }
        state.waiting.push_back(job);
        drop(state);
        self.0.arrived.notify_one();
        Ok(())
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does jobs until there has been none for a while.
    fn work(&self) {
        while let Some(job) = self.next() {
            job();
        }
    }

    fn next(&self) -> Option<Job> {
        let mut state = self.state();
        state.idle += 1;
        let waited = self
            .arrived
            .wait_timeout_while(state, IDLE, |state| state.waiting.is_empty());
        state = waited.unwrap_or_else(PoisonError::into_inner).0;
        state.idle -= 1;
        let job = state.waiting.pop_front();
        if job.is_none() {
            state.threads -= 1;
        }
        job
    }
}

fn broken(what: &str) -> StorageError {
    StorageError::Broken { what: what.into() }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[tokio::test]
    async fn jobs_are_done_elsewhere_and_answered() {
        let storage = Storage::default();
        let here = thread::current().id();
        let there = storage.run("it", || thread::current().id()).await.unwrap();
        assert_ne!(here, there);
    }

    #[tokio::test]
    async fn one_that_hangs_keeps_nobody_else_waiting() {
        let storage = Storage::default();
        let (go_on, gate) = mpsc::channel::<()>();
        let hanging = storage.jobs.begin(move || gate.recv(), drop).unwrap();
        for number in 0..2 * THREADS_MAX {
            assert_eq!(storage.run("it", move || number).await.unwrap(), number);
        }
        drop(go_on);
        assert!(hanging.await.unwrap().is_err());
    }

    #[tokio::test]
    async fn what_comes_after_its_deadline_is_undone() {
        let storage = Storage::default();
        let (go_on, gate) = mpsc::channel::<()>();
        let (hangs, begun) = mpsc::channel();
        let (undone, told) = mpsc::channel();
        let late = tokio::spawn(async move {
            let work = move || {
                hangs.send(()).unwrap();
                let _ = gate.recv();
                undone
            };
            let undo = |undone: mpsc::Sender<_>| undone.send("undone").unwrap();
            storage.run_or_undo("the volume", work, undo).await
        });
        tokio::task::spawn_blocking(move || begun.recv())
            .await
            .unwrap()
            .unwrap();
        tokio::time::pause();
        let error = late.await.unwrap().unwrap_err();
        assert_eq!(
            error.to_string(),
            "the file system of the volume does not answer"
        );
        drop(go_on);
        assert_eq!(told.recv().unwrap(), "undone");
    }

    #[tokio::test(start_paused = true)]
    async fn when_all_hang_more_is_refused_and_nothing_late_is_begun() {
        let storage = Storage::default();
        let (go_on, gate) = mpsc::channel::<()>();
        let gate = Arc::new(Mutex::new(gate));
        let (hangs, all_hang) = mpsc::channel();
        let mut hanging = Vec::new();
        for _ in 0..THREADS_MAX {
            let (gate, hangs) = (gate.clone(), hangs.clone());
            let job = move || {
                hangs.send(()).unwrap();
                drop(gate.lock().map(|gate| gate.recv()));
            };
            hanging.push(storage.jobs.begin(job, drop).unwrap());
        }
        assert_eq!(all_hang.iter().take(THREADS_MAX).count(), THREADS_MAX);
        let (begun, late) = mpsc::channel();
        let waiting = storage.run("it", move || begun.send(()));
        assert!(matches!(waiting.await, Err(StorageError::TimedOut { .. })));
        for _ in 1..WAITING_MAX {
            hanging.push(storage.jobs.begin(|| (), drop).unwrap());
        }
        let refused = storage.run("it", || ()).await;
        assert!(matches!(refused, Err(StorageError::Busy)));
        drop(go_on);
        for job in hanging {
            job.await.unwrap();
        }
        assert!(late.recv().is_err());
    }
}
