//! A thread for what may wait for the kernel: made at the start, when there are threads to be had.
//!
//! A container can use up the threads of the machine, so that none is made later. One worker does one job after the other; what it is given
//! beyond [`JOBS_MAX`] is refused. A container can make one kind of job wait for as long as it likes, so that each kind has a worker of its own.

use std::io;
use std::thread;

use tokio::sync::mpsc::{Permit, Receiver, Sender, channel};

/// Jobs that wait. The host asks for one after the other for each container.
const JOBS_MAX: usize = 64;

type Job = Box<dyn FnOnce() + Send>;

/// Why a job is not done.
#[derive(Debug, thiserror::Error)]
#[error("{JOBS_MAX} jobs wait for the kernel already")]
pub(crate) struct Busy;

/// The handle of the thread; clones are the same one.
#[derive(Clone, Debug)]
pub(crate) struct Worker(Sender<Job>);

/// A place in the queue.
#[derive(Debug)]
pub(crate) struct Turn<'w>(Permit<'w, Job>);

impl Worker {
    /// Makes the thread.
    pub(crate) fn start(name: &str) -> io::Result<Self> {
        let (jobs, taken) = channel(JOBS_MAX);
        thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || work(taken))?;
        Ok(Self(jobs))
    }

    /// A place after the jobs given before. Does not wait for one.
    pub(crate) fn turn(&self) -> Result<Turn<'_>, Busy> {
        self.0.try_reserve().map(Turn).map_err(|_| Busy)
    }
}

impl Turn<'_> {
    /// Has the job done.
    pub(crate) fn give(self, job: impl FnOnce() + Send + 'static) {
        self.0.send(Box::new(job));
    }
}

fn work(mut jobs: Receiver<Job>) {
    // Ends with the last handle.
    while let Some(job) = jobs.blocking_recv() {
        job();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn jobs_are_done_in_order_and_bounded() {
        let worker = Worker::start("test").unwrap();
        let (go, wait) = mpsc::channel::<()>();
        let (began, begun) = mpsc::channel();
        let (done, order) = mpsc::channel();
        worker.turn().unwrap().give(move || {
            began.send(()).unwrap();
            wait.recv().unwrap();
        });
        begun.recv().unwrap();
        for number in 0..JOBS_MAX {
            let done = done.clone();
            let job = move || done.send(number).unwrap();
            worker.turn().unwrap().give(job);
        }
        assert!(worker.turn().is_err());
        go.send(()).unwrap();
        let numbers: Vec<usize> = order.iter().take(JOBS_MAX).collect();
        assert!(numbers.into_iter().eq(0..JOBS_MAX));
    }
}
