//! The memory device's requests, beside a model of the specification (virtio 1.2, section 5.15.6).
//!
//! Promised: the answer the model gives; the host is told to plug what is unplugged and to unplug
//! what is plugged, inside the region and no more than is requested; and the configuration space
//! says what is so. Resets, pauses and a host without memory come in between.

use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex};

use vmm_virtio::mem::{BLOCK_BYTES, Backing, Host, Mem};
use vmm_virtio::testing::FakeDriver;
use vmm_virtio::worker;

use crate::input::Input;

const START: u64 = 4 << 30;
const BLOCKS: usize = 16;
const REGION_BYTES: u64 = BLOCKS as u64 * BLOCK_BYTES;
const STEPS_MAX: usize = 64;

const ACK: u8 = 0;
const NACK: u8 = 1;
const BUSY: u8 = 2;
const ERROR: u8 = 3;

/// What the host did, and whether it can.
#[derive(Debug, Default)]
struct Told {
    plugged: [bool; BLOCKS],
    refuses: bool,
}

impl Told {
    fn switch(&mut self, range: &Range<u64>, on: bool) -> io::Result<()> {
        assert!(range.start < range.end && range.end <= REGION_BYTES);
        assert!(range.start.is_multiple_of(BLOCK_BYTES) && range.end.is_multiple_of(BLOCK_BYTES));
        if self.refuses {
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        for block in range.start / BLOCK_BYTES..range.end / BLOCK_BYTES {
            let block = &mut self.plugged[usize::try_from(block).unwrap()];
            assert_ne!(*block, on, "told twice");
            *block = on;
        }
        Ok(())
    }
}

#[derive(Clone, Debug, Default)]
struct FakeBacking(Arc<Mutex<Told>>);

impl Backing for FakeBacking {
    fn plug(&mut self, range: Range<u64>) -> io::Result<()> {
        self.0.lock().unwrap().switch(&range, true)
    }

    fn unplug(&mut self, range: Range<u64>) -> io::Result<()> {
        self.0.lock().unwrap().switch(&range, false)
    }
}

/// The device, and what it must be.
struct Model {
    driver: FakeDriver,
    host: Host,
    backing: FakeBacking,
    plugged: [bool; BLOCKS],
    usable: u64,
    requested: u64,
}

pub(crate) fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let backing = FakeBacking::default();
    let (device, host) = Mem::new(START..START + REGION_BYTES, Box::new(backing.clone())).unwrap();
    let mut model = Model {
        driver: FakeDriver::new(Box::new(device)),
        host,
        backing,
        plugged: [false; BLOCKS],
        usable: 0,
        requested: 0,
    };
    model.driver.bring_up();
    worker::turn();
    for _ in 0..STEPS_MAX {
        if input.is_empty() {
            break;
        }
        model.step(&mut input);
        model.check();
    }
}

impl Model {
    fn step(&mut self, input: &mut Input<'_>) {
        match input.u8() % 8 {
            0 => self.request_of_host(input),
            1 => {
                self.driver.transport.pause();
                self.driver.transport.resume();
            }
            2 => {
                self.driver.reset();
                self.driver.bring_up();
            }
            3 => self.backing.0.lock().unwrap().refuses = input.u8() & 1 == 1,
            4 => self.ask(input.u16(), input.u64(), input.u16()),
            _ => {
                let kind = input.u16() % 4;
                let block = u64::from(input.u8() % 20);
                self.ask(
                    kind,
                    START + block * BLOCK_BYTES,
                    u16::from(input.u8() % 20),
                );
            }
        }
        worker::turn();
    }

    fn request_of_host(&mut self, input: &mut Input<'_>) {
        let (bytes, usable) = match input.u8() & 1 {
            0 => (
                u64::from(input.u8() % 20) * BLOCK_BYTES,
                u64::from(input.u8() % 20) * BLOCK_BYTES,
            ),
            _ => (input.u64(), input.u64()),
        };
        let sensible =
            bytes <= usable && usable <= REGION_BYTES && bytes.is_multiple_of(BLOCK_BYTES);
        assert_eq!(self.host.request(bytes, usable).is_ok(), sensible);
        if sensible {
            self.usable = self.usable.max(usable / BLOCK_BYTES);
            self.requested = bytes;
        }
    }

    /// Sends one request and compares the answer.
    fn ask(&mut self, kind: u16, address: u64, count: u16) {
        let mut request = [0; 24];
        request[..2].copy_from_slice(&kind.to_le_bytes());
        request[8..16].copy_from_slice(&address.to_le_bytes());
        request[16..18].copy_from_slice(&count.to_le_bytes());
        self.driver.offer(0, &request, 16);
        worker::turn();
        let answer = self.driver.used(0).expect("an answered request");
        assert_eq!(answer.len(), 10);
        let wanted = self.answer(kind, address, count);
        assert_eq!(
            (answer[0], answer[8]),
            wanted,
            "{kind} {address:#x} {count}"
        );
    }

    /// What the specification answers, and what is so afterwards.
    fn answer(&mut self, kind: u16, address: u64, count: u16) -> (u8, u8) {
        let refuses = self.backing.0.lock().unwrap().refuses;
        if kind == 2 {
            if refuses && self.plugged_bytes() > 0 {
                return (BUSY, 0);
            }
            self.plugged = [false; BLOCKS];
            return (ACK, 0);
        }
        let Some(range) = self.range(address, count) else {
            return (ERROR, 0);
        };
        let all = range.len();
        let on = self.plugged[range.clone()]
            .iter()
            .filter(|plugged| **plugged)
            .count();
        match kind {
            3 if on == all => return (ACK, 0),
            3 if on == 0 => return (ACK, 1),
            3 => return (ACK, 2),
            0 if on == 0 => {
                let more = u64::try_from(all).unwrap() * BLOCK_BYTES;
                if self.plugged_bytes() + more > self.requested {
                    return (NACK, 0);
                }
            }
            1 if on == all => {}
            _ => return (ERROR, 0),
        }
        if refuses {
            return (BUSY, 0);
        }
        self.plugged[range].fill(kind == 0);
        (ACK, 0)
    }

    fn plugged_bytes(&self) -> u64 {
        let blocks = self.plugged.iter().filter(|plugged| **plugged).count();
        u64::try_from(blocks).unwrap() * BLOCK_BYTES
    }

    /// The blocks a request names, if it may name them.
    fn range(&self, address: u64, count: u16) -> Option<Range<usize>> {
        let offset = address.checked_sub(START)?;
        if count == 0 || !offset.is_multiple_of(BLOCK_BYTES) {
            return None;
        }
        let first = offset / BLOCK_BYTES;
        let end = first + u64::from(count);
        if end > self.usable {
            return None;
        }
        Some(usize::try_from(first).ok()?..usize::try_from(end).ok()?)
    }

    /// Model, host and configuration space agree.
    fn check(&self) {
        assert_eq!(self.backing.0.lock().unwrap().plugged, self.plugged);
        assert_eq!(self.host.plugged(), self.plugged_bytes());
        let wanted = [
            BLOCK_BYTES,
            0,
            START,
            REGION_BYTES,
            self.usable * BLOCK_BYTES,
            self.plugged_bytes(),
            self.requested,
        ];
        for (offset, wanted) in (0x100..).step_by(8).zip(wanted) {
            let word = |at| u64::from(self.driver.read(at));
            assert_eq!(word(offset) | word(offset + 4) << 32, wanted);
        }
    }
}
