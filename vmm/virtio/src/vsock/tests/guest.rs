//! A guest with one socket, behind a [`FakeDriver`].

use super::super::packet::{HEADER_BYTES, HOST_CID, Header, Operation, Shutdown, TYPE_STREAM};
use super::super::{Host, Vsock};
use crate::saved::SavedDevice;
use crate::testing::FakeDriver;
use crate::{Device, Resources, StartError, Stopped, Traits};

pub(super) const CID: u64 = 3;
pub(super) const PORT: u32 = 1024;
pub(super) const GUEST_PORT: u32 = 7000;

const RX: usize = 0;
const TX: usize = 1;
const EVENTS: usize = 2;
/// Chains the driver may have offered and not got back; its buffers allow no more.
const UNDER_WAY_MAX: usize = 8;
/// What a Linux guest offers.
const ROOM_BYTES: u32 = 4096;

pub(super) struct Guest {
    pub(super) driver: FakeDriver,
    pub(super) host: Host,
    /// The socket's `fwd_cnt`.
    pub(super) forwarded: u32,
    sent_under_way: usize,
}

impl Guest {
    pub(super) fn new() -> Self {
        let (device, host) = Vsock::new(u32::try_from(CID).unwrap(), vec![PORT]).unwrap();
        Self::with(Box::new(device), host)
    }

    /// A guest that was running in another process.
    pub(super) fn restored() -> Self {
        let (device, host) = Vsock::new(u32::try_from(CID).unwrap(), vec![PORT]).unwrap();
        let device = Restored { device, once: true };
        Self::with(Box::new(device), host)
    }

    fn with(device: Box<dyn Device>, host: Host) -> Self {
        Self {
            driver: FakeDriver::new(device),
            host,
            forwarded: 0,
            sent_under_way: 0,
        }
    }

    pub(super) fn bring_up(&mut self) {
        self.sent_under_way = 0;
        self.driver.bring_up();
    }

    pub(super) fn pause_and_resume(&mut self) {
        self.driver.transport.pause();
        self.driver.transport.resume();
    }

    pub(super) fn header(&self, operation: Operation) -> Header {
        Header {
            src_cid: CID,
            dst_cid: HOST_CID,
            src_port: GUEST_PORT,
            dst_port: PORT,
            socket_type: TYPE_STREAM,
            op: operation as u16,
            buf_alloc: 256 * 1024,
            fwd_cnt: self.forwarded,
            ..Header::default()
        }
    }

    pub(super) fn send(&mut self, operation: Operation, payload: &[u8]) {
        let mut header = self.header(operation);
        header.len = u32::try_from(payload.len()).unwrap();
        let mut bytes = header.to_bytes().to_vec();
        bytes.extend(payload);
        self.send_bytes(&bytes);
    }

    pub(super) fn send_shutdown(&mut self, directions: Shutdown) {
        let mut header = self.header(Operation::Shutdown);
        header.flags = directions.flags();
        self.send_bytes(&header.to_bytes());
    }

    /// Sends bytes that may be no packet.
    pub(super) fn send_bytes(&mut self, bytes: &[u8]) {
        while self.driver.used(TX).is_some() {
            self.sent_under_way -= 1;
        }
        if self.sent_under_way == UNDER_WAY_MAX {
            self.driver.wait_used(TX);
            self.sent_under_way -= 1;
        }
        self.driver.offer(TX, bytes, 0);
        self.sent_under_way += 1;
    }

    /// Offers room for `count` packets.
    pub(super) fn offer_room(&mut self, count: usize) {
        for _ in 0..count {
            self.driver.offer(RX, &[], ROOM_BYTES);
        }
    }

    /// Offers room of `bytes`, header included.
    pub(super) fn offer_room_of(&mut self, bytes: u32) {
        self.driver.offer(RX, &[], bytes);
    }

    /// Waits for a packet.
    pub(super) fn receive(&mut self) -> (Header, Vec<u8>) {
        let bytes = self.driver.wait_used(RX);
        packet(bytes)
    }

    /// A packet, if one has come.
    pub(super) fn received(&mut self) -> Option<(Header, Vec<u8>)> {
        self.driver.used(RX).map(packet)
    }

    pub(super) fn offer_event_room(&mut self) {
        self.driver.offer(EVENTS, &[], 4);
    }

    pub(super) fn event(&mut self) -> Vec<u8> {
        self.driver.wait_used(EVENTS)
    }

    pub(super) fn has_event(&mut self) -> bool {
        self.driver.used(EVENTS).is_some()
    }
}

fn packet(mut bytes: Vec<u8>) -> (Header, Vec<u8>) {
    let payload = bytes.split_off(HEADER_BYTES);
    let header = Header::from_bytes(&bytes.try_into().unwrap());
    assert_eq!(usize::try_from(header.len).unwrap(), payload.len());
    (header, payload)
}

/// A device whose first start is from the state of another process.
#[derive(Debug)]
struct Restored {
    device: Vsock,
    once: bool,
}

impl Device for Restored {
    fn traits(&self) -> Traits {
        self.device.traits()
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        self.device.read_config(offset, data);
    }

    fn start(&mut self, mut resources: Resources) -> Result<(), StartError> {
        if std::mem::take(&mut self.once) {
            resources.saved = SavedDevice::Vsock;
        }
        self.device.start(resources)
    }

    fn stop(&mut self) -> Option<Stopped> {
        self.device.stop()
    }
}
