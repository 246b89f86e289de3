//! Stream sockets between host and guest (virtio 1.2, section 5.10): `AF_VSOCK` in the guest, Unix stream sockets on the host.
//!
//! ```text
//!   guest ── tx ─► worker ─► packet ─► muxer ─► connection ─► stream ─► the host's peer
//!   guest ◄─ rx ── worker ◄─ packet ◄─ muxer ◄─ connection ◄─ stream ◄─ the host's peer
//! ```
//!
//! [`Host`] is the other end of the device: it gives streams to be connected to a guest port, and takes those of the connections the guest made.
//!
//! Happy path: kicks and streams with news wake the worker; it takes packets from tx, then fills the room in rx, and interrupts once for all of
//! it. A guest that offers no room in rx stops the reading from streams and, once many resets wait, the taking of packets; neither loses a byte.
//!
//! Stopped, the device keeps its connections, and started again from the state it left it goes on with them. Another process that starts from
//! that state has none of them; the guest is told by `VIRTIO_VSOCK_EVENT_TRANSPORT_RESET` (section 5.10.6.7) and resets its sockets. After a reset of the
//! device all connections are closed.
//!
//! Ways to fail: a ring or a chain without sense stops the device and closes all connections.

mod buffers;
mod connection;
mod endpoint;
/// The connections without queues, for fuzzing.
#[cfg(fuzzing)]
pub mod fuzzing;
mod host;
mod muxer;
mod packet;
mod stream;
#[expect(
    unsafe_code,
    reason = "system calls on guest memory, to which there are no references"
)]
mod vectored;
mod worker;

use std::io;

pub use host::{ConnectError, Host};

use crate::device::read_config_bytes;
use crate::saved::SavedDevice;
use crate::worker::Worker;
use crate::{Device, Resources, StartError, Stopped, Traits};
use muxer::Muxer;
use worker::{Queues, VsockWorker};

const DEVICE_ID: u32 = 19;
const NAME: &str = "vsock";
/// rx, tx and events. A Linux guest fills rx with 4 KiB buffers, so 128 are twice what one connection may have on its way, and take 512 KiB of
/// it; it keeps 8 buffers for events, which is half of the ring.
const QUEUE_SIZES: &[u16] = &[128, 128, 16];

/// The socket device.
#[derive(Debug)]
pub struct Vsock {
    guest_cid: u64,
    host_ports: Vec<u32>,
    host: Host,
    state: State,
}

#[derive(Debug)]
enum State {
    /// The connections wait for the device to be started again, if it has been started before.
    Stopped(Option<Muxer>),
    Started(Worker<VsockWorker>),
}

impl Vsock {
    /// A device for the guest with context id `guest_cid`, which may dial each of `host_ports`
    /// once, and its host end.
    pub fn new(guest_cid: u32, host_ports: Vec<u32>) -> io::Result<(Self, Host)> {
        let host = Host::new(host_ports.clone())?;
        let device = Self {
            guest_cid: u64::from(guest_cid),
            host_ports,
            host: host.clone(),
            state: State::Stopped(None),
        };
        Ok((device, host))
    }
}

impl Device for Vsock {
    fn traits(&self) -> Traits {
        Traits {
            id: DEVICE_ID,
            features: 0,
            queue_sizes: QUEUE_SIZES,
        }
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_config_bytes(&self.guest_cid.to_le_bytes(), offset, data);
    }

    fn start(&mut self, mut resources: Resources) -> Result<(), StartError> {
        let resumed = match resources.saved {
            SavedDevice::Fresh => false,
            SavedDevice::Vsock => true,
            _ => return Err(StartError::WrongState),
        };
        let queues = Queues {
            rx: resources.take_queue(0)?,
            tx: resources.take_queue(1)?,
            events: resources.take_queue(2)?,
        };
        let ends = self.host.ends();
        let kept = match &mut self.state {
            State::Stopped(muxer) => muxer.take().filter(|_| resumed),
            State::Started(_) => None,
        };
        let muxer = match kept {
            Some(muxer) => muxer,
            None => Muxer::new(self.guest_cid, &self.host_ports, ends.clone(), resumed)
                .map_err(|source| StartError::Worker { name: NAME, source })?,
        };
        ends.open();
        let worker = VsockWorker::new(resources.memory, queues, muxer, ends);
        let spawned = Worker::spawn(NAME, worker, resources.confine, resources.failure);
        let worker = spawned.map_err(|failed| {
            // Also those of a session that was only paused, which go on when the next start
            // succeeds.
            let (_, muxer) = failed.handler.into_parts();
            self.state = State::Stopped(muxer);
            failed.error
        })?;
        self.state = State::Started(worker);
        Ok(())
    }

    fn stop(&mut self) -> Option<Stopped> {
        match std::mem::replace(&mut self.state, State::Stopped(None)) {
            State::Started(worker) => {
                let (queues, muxer) = worker.stop()?.into_parts();
                self.state = State::Stopped(muxer);
                Some(Stopped {
                    queues: queues.states().map(Some).to_vec(),
                    saved: SavedDevice::Vsock,
                })
            }
            stopped => {
                self.state = stopped;
                None
            }
        }
    }
}

#[cfg(test)]
mod tests;
