//! virtio-rng (virtio 1.2, section 5.4): one queue of buffers to fill with entropy.
//!
//! A guest asks for a few bytes at a time. A chain is filled up to [`FILL_MAX_BYTES`] and given back; the driver asks again if it wants more.

use std::sync::Arc;

use rustix::rand::{GetRandomFlags, getrandom};

use crate::device::{Device, Resources, StartError, Stopped, Traits};
use crate::saved::SavedDevice;
use crate::worker::{Handler, Poller, Worker};
use crate::{GuestMemory, Queue, QueueError};

const ID: u32 = 4;
const QUEUE_SIZES: &[u16] = &[16];
/// Bytes per chain, so that a chain of 4 GiB costs the host no more than a small one.
const FILL_MAX_BYTES: usize = 256;

/// The entropy device.
#[derive(Debug, Default)]
pub struct Rng {
    worker: Option<Worker<RngWorker>>,
}

#[derive(Debug)]
struct RngWorker {
    memory: Arc<GuestMemory>,
    queue: Queue,
}

/// Why the device gave up.
#[derive(Debug, thiserror::Error)]
pub enum RngError {
    /// The driver broke the queue.
    #[error("request queue")]
    Queue(#[from] QueueError),
    /// The host has no entropy, or no epoll.
    #[error("host")]
    Host(#[from] std::io::Error),
}

impl Device for Rng {
    fn traits(&self) -> Traits {
        Traits {
            id: ID,
            features: 0,
            queue_sizes: QUEUE_SIZES,
        }
    }

    fn read_config(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn start(&mut self, mut resources: Resources) -> Result<(), StartError> {
        let queue = resources.take_queue(0)?;
        let worker = RngWorker {
            memory: resources.memory,
            queue,
        };
        let spawned = Worker::spawn("rng", worker, resources.confine, resources.failure);
        self.worker = Some(spawned.map_err(|failed| failed.error)?);
        Ok(())
    }

    fn stop(&mut self) -> Option<Stopped> {
        let worker = self.worker.take()?.stop()?;
        Some(Stopped {
            queues: vec![Some(worker.queue.state())],
            saved: SavedDevice::Fresh,
        })
    }
}

impl RngWorker {
    fn serve(&mut self) -> Result<(), RngError> {
        self.queue.serve(&self.memory, |chain| {
            let room = chain.writer()?.available_bytes().min(FILL_MAX_BYTES);
            let mut entropy = [0; FILL_MAX_BYTES];
            let filled = getrandom(&mut entropy[..room], GetRandomFlags::empty())
                .map_err(std::io::Error::from)?;
            Ok(chain.write_from(&entropy[..filled])?)
        })
    }
}

impl Handler for RngWorker {
    type Error = RngError;

    fn register(&mut self, poller: &Poller) -> Result<(), RngError> {
        poller.add(self.queue.kick(), 0)?;
        self.serve()
    }

    fn ready(&mut self, _token: u64, _poller: &Poller) -> Result<(), RngError> {
        self.queue.acknowledge_kick()?;
        self.serve()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::FakeDriver;

    #[test]
    fn requests_are_filled_with_different_bytes() {
        let mut driver = FakeDriver::new(Box::new(Rng::default()));
        driver.bring_up();
        let first = driver.exchange(0, &[], 64);
        let second = driver.exchange(0, &[], 64);
        assert_eq!((first.len(), second.len()), (64, 64));
        assert_ne!(first, second);
    }

    #[test]
    fn a_large_request_is_filled_in_part() {
        let mut driver = FakeDriver::new(Box::new(Rng::default()));
        driver.bring_up();
        assert_eq!(driver.exchange(0, &[], 4096).len(), FILL_MAX_BYTES);
    }

    #[test]
    fn requests_of_a_paused_device_are_served_after_it() {
        let mut driver = FakeDriver::new(Box::new(Rng::default()));
        driver.bring_up();
        assert_eq!(driver.exchange(0, &[], 8).len(), 8);
        driver.transport.pause();
        driver.offer(0, &[], 8);
        assert!(driver.used(0).is_none());
        driver.transport.resume();
        assert_eq!(driver.wait_used(0).len(), 8);
    }

    #[test]
    fn device_that_is_fed_for_ever_is_stopped() {
        use std::sync::atomic::{AtomicBool, Ordering};

        use vm_memory::{Bytes, GuestAddress};

        use crate::testing::RING_SIZE;

        /// Indices of the first ring in the fake driver's memory.
        const AVAILABLE_INDEX: GuestAddress = GuestAddress(0x1002);
        const USED_INDEX: GuestAddress = GuestAddress(0x2002);
        let mut driver = FakeDriver::new(Box::new(Rng::default()));
        driver.bring_up();
        driver.exchange(0, &[], 8);
        let fed = Arc::new(AtomicBool::new(true));
        // Another processor of the guest, which offers the same buffer anew as soon as it is
        // filled.
        let feeder = std::thread::spawn({
            let (fed, memory) = (Arc::clone(&fed), Arc::clone(&driver.memory));
            move || {
                while fed.load(Ordering::SeqCst) {
                    let used: u16 = memory.load(USED_INDEX, Ordering::SeqCst).unwrap();
                    let offered = used.wrapping_add(RING_SIZE / 2);
                    memory
                        .store(offered, AVAILABLE_INDEX, Ordering::SeqCst)
                        .unwrap();
                }
            }
        });
        for _ in 0..100 {
            driver.write(crate::mmio::QUEUE_NOTIFY, 0);
            driver.transport.pause();
            driver.transport.resume();
        }
        driver.reset();
        fed.store(false, Ordering::SeqCst);
        feeder.join().unwrap();
    }
}
