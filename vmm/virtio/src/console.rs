//! virtio-console (virtio 1.2, section 5.3), one way: what the guest prints goes to a log, and nothing is ever typed.
//!
//! The transmit queue carries the kernel's messages and PID 1's; the receive queue's buffers are left with the device. The log never
//! blocks and never fails (it drops), so a guest that prints without end costs a copy, which the guest's own vCPU paid for too.

use std::io::Write;
use std::sync::Arc;

use crate::device::{Device, Resources, StartError, Stopped, Traits};
use crate::saved::SavedDevice;
use crate::worker::{Handler, Poller, Worker};
use crate::{GuestMemory, Queue, QueueError, QueueState};

const ID: u32 = 3;
/// Receive, transmit.
const QUEUE_SIZES: &[u16] = &[16, 64];
/// Bytes taken from a chain; longer output is cut, since one page is the most the guest's driver sends at once.
const CHAIN_MAX_BYTES: usize = 4096;

/// The console device.
#[derive(Debug)]
pub struct Console<W> {
    /// None while the worker has it.
    log: Option<W>,
    receive: Option<QueueState>,
    worker: Option<Worker<ConsoleWorker<W>>>,
}

#[derive(Debug)]
struct ConsoleWorker<W> {
    memory: Arc<GuestMemory>,
    transmit: Queue,
    log: W,
    buffer: Box<[u8; CHAIN_MAX_BYTES]>,
}

/// Why the device gave up.
#[derive(Debug, thiserror::Error)]
pub enum ConsoleError {
    /// The driver broke the queue.
    #[error("transmit queue")]
    Queue(#[from] QueueError),
    /// The log, or epoll.
    #[error("host")]
    Host(#[from] std::io::Error),
}

impl<W: Write + Send + 'static> Console<W> {
    /// A console whose output goes to `log`.
    pub fn new(log: W) -> Self {
        Self {
            log: Some(log),
            receive: None,
            worker: None,
        }
    }
}

impl<W: Write + Send + std::fmt::Debug + 'static> Device for Console<W> {
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
        let transmit = resources.take_queue(1)?;
        let receive = resources
            .queues
            .first()
            .and_then(Option::as_ref)
            .map(Queue::state);
        let log = self.log.take().ok_or(StartError::WrongState)?;
        let buffer = Box::new([0; CHAIN_MAX_BYTES]);
        let worker = ConsoleWorker {
            memory: resources.memory,
            transmit,
            log,
            buffer,
        };
        let spawned = Worker::spawn("console", worker, resources.confine, resources.failure);
        let worker = spawned.map_err(|failed| {
            self.log = Some(failed.handler.log);
            failed.error
        })?;
        self.worker = Some(worker);
        self.receive = receive;
        Ok(())
    }

    fn stop(&mut self) -> Option<Stopped> {
        let worker = self.worker.take()?.stop()?;
        self.log = Some(worker.log);
        let queues = vec![self.receive.take(), Some(worker.transmit.state())];
        Some(Stopped {
            queues,
            saved: SavedDevice::Fresh,
        })
    }
}

impl<W: Write> ConsoleWorker<W> {
    fn serve(&mut self) -> Result<(), ConsoleError> {
        self.transmit.serve(&self.memory, |chain| {
            let length = chain.read_into(&mut self.buffer[..])?;
            self.log.write_all(&self.buffer[..length])?;
            Ok(0)
        })
    }
}

impl<W: Write + Send + 'static> Handler for ConsoleWorker<W> {
    type Error = ConsoleError;

    fn register(&mut self, poller: &Poller) -> Result<(), ConsoleError> {
        poller.add(self.transmit.kick(), 0)?;
        self.serve()
    }

    fn ready(&mut self, _token: u64, _poller: &Poller) -> Result<(), ConsoleError> {
        self.transmit.acknowledge_kick()?;
        self.serve()
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::Mutex;

    use super::*;
    use crate::testing::FakeDriver;

    #[derive(Clone, Debug, Default)]
    struct Kept(Arc<Mutex<Vec<u8>>>);

    impl Write for Kept {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn output_reaches_the_log_in_order() {
        let log = Kept::default();
        let mut driver = FakeDriver::new(Box::new(Console::new(log.clone())));
        driver.bring_up();
        driver.exchange(1, b"one ", 0);
        driver.exchange(1, b"two", 0);
        assert_eq!(*log.0.lock().unwrap(), b"one two");
    }

    #[test]
    fn a_long_line_is_cut() {
        let log = Kept::default();
        let mut driver = FakeDriver::new(Box::new(Console::new(log.clone())));
        driver.bring_up();
        driver.exchange(1, &[b'x'; CHAIN_MAX_BYTES + 1], 0);
        assert_eq!(log.0.lock().unwrap().len(), CHAIN_MAX_BYTES);
    }

    #[test]
    fn output_goes_on_after_a_pause() {
        let log = Kept::default();
        let mut driver = FakeDriver::new(Box::new(Console::new(log.clone())));
        driver.bring_up();
        driver.exchange(1, b"before ", 0);
        driver.transport.pause();
        driver.transport.resume();
        driver.exchange(1, b"after", 0);
        assert_eq!(*log.0.lock().unwrap(), b"before after");
    }

    #[test]
    fn a_reset_console_starts_again() {
        let log = Kept::default();
        let mut driver = FakeDriver::new(Box::new(Console::new(log.clone())));
        driver.bring_up();
        driver.exchange(1, b"first ", 0);
        driver.reset();
        driver.bring_up();
        driver.exchange(1, b"second", 0);
        assert_eq!(*log.0.lock().unwrap(), b"first second");
    }
}
