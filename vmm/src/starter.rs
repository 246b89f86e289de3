//! The thread that starts and stops devices.
//!
//! A thread inherits the system call filter of the one that makes it, and can only narrow it. vCPU threads, which run what the guest orders,
//! have a narrow one; so a device's worker is not made by the vCPU whose register write starts it, but here, while that vCPU waits.

use std::io;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::thread;

use vmm_virtio::Confine;

/// The name under which the thread confines itself: to what all workers may do, and making them.
pub const THREAD: &str = "devices";
const STACK_BYTES: usize = 64 * 1024;

type Job = Box<dyn FnOnce() + Send>;

/// A handle to the thread; it ends with the last handle.
#[derive(Clone, Debug)]
pub struct Starter {
    jobs: Sender<(Job, Option<SyncSender<()>>)>,
}

impl Starter {
    /// Starts the thread and waits until it has confined itself.
    pub fn spawn(confine: Confine) -> io::Result<Self> {
        let (jobs, queue) = channel();
        let (confined, confinement) = sync_channel(1);
        thread::Builder::new()
            .name(THREAD.to_owned())
            .stack_size(STACK_BYTES)
            .spawn(move || {
                let entered = confine.enter(THREAD);
                let go_on = entered.is_ok();
                // The other side waits for it.
                let _told = confined.send(entered);
                if go_on {
                    work(&queue);
                }
            })?;
        confinement.recv().map_err(io::Error::other)??;
        Ok(Self { jobs })
    }

    /// Runs `job` on the thread when those before it are done, and does not wait. The job tells of
    /// its end itself.
    pub fn post(&self, job: impl FnOnce() + Send + 'static) {
        // The thread ends after the last handle only.
        let _sent = self.jobs.send((Box::new(job), None));
    }

    /// Runs `job` on the thread and waits for it. Jobs run one after another; one must not wait for another.
    pub fn run(&self, job: impl FnOnce() + Send + 'static) {
        let (done, finished) = sync_channel(1);
        if self.jobs.send((Box::new(job), Some(done))).is_ok() {
            // It ends by being done: a panic would end the process.
            let _done = finished.recv();
        }
    }
}

fn work(queue: &Receiver<(Job, Option<SyncSender<()>>)>) {
    for (job, done) in queue {
        job();
        // Whoever asked waits for it.
        let _told = done.map(|done| done.send(()));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::Mutex;

    use super::*;

    #[test]
    fn jobs_are_done_on_the_confined_thread_when_run_returns() {
        let names = Arc::new(Mutex::new(Vec::new()));
        let confine = Confine::new({
            let names = Arc::clone(&names);
            move |name| {
                names.lock().unwrap().push(name.to_owned());
                Ok(())
            }
        });
        let starter = Starter::spawn(confine).unwrap();
        starter.run({
            let names = Arc::clone(&names);
            move || {
                names
                    .lock()
                    .unwrap()
                    .extend(thread::current().name().map(str::to_owned))
            }
        });
        assert_eq!(*names.lock().unwrap(), [THREAD, THREAD]);
    }

    #[test]
    fn thread_that_cannot_be_confined_is_an_error() {
        let confine = Confine::new(|_| Err(io::ErrorKind::Unsupported.into()));
        assert_eq!(
            Starter::spawn(confine).unwrap_err().kind(),
            io::ErrorKind::Unsupported
        );
    }
}
