//! Every device behind its registers and rings, driven by a guest that writes anywhere in its
//! memory.
//!
//! Each device's thread runs here, in turns, so that an input does the same whenever it is run.
//! Promised: whatever a guest does, its device says that it needs a reset or goes on, no turn takes
//! for ever, and after a reset an honest driver is served.

use std::io;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use rustix::fs::{Mode, OFlags};
use vm_memory::{Bytes, GuestAddress};
use vmm_virtio::Device;
use vmm_virtio::console::Console;
use vmm_virtio::fs::{Fs, FsConfig};
use vmm_virtio::mem::{self, BLOCK_BYTES, Backing, Mem};
use vmm_virtio::rng::Rng;
use vmm_virtio::testing::FakeDriver;
use vmm_virtio::vsock::{self, Vsock};
use vmm_virtio::worker;

use crate::input::Input;

const STEPS_MAX: usize = 96;
/// Where the fake driver lays out each queue: its tables and its buffers.
const RING_BYTES: u64 = 2 << 20;
const AVAILABLE: u64 = 0x1000;
const USED: u64 = 0x2000;
const BUFFERS: u64 = 0x1_0000;
/// Turns in which a device must have done what was asked of it.
const TURNS_MAX: usize = 1000;
const REGION: Range<u64> = 4 << 30..(4 << 30) + 8 * BLOCK_BYTES;
const STATUS: u64 = 0x070;
const NEEDS_RESET: u32 = 64;

/// What the host holds of the device.
#[derive(Debug)]
enum Host {
    Console,
    Rng,
    Mem(mem::Host),
    Vsock(vsock::Host, Vec<UnixStream>),
    Fs,
}

#[derive(Debug)]
struct NoBacking;

impl Backing for NoBacking {
    fn plug(&mut self, _range: Range<u64>) -> io::Result<()> {
        Ok(())
    }

    fn unplug(&mut self, _range: Range<u64>) -> io::Result<()> {
        Ok(())
    }
}

pub(crate) fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let (device, mut host) = device(&mut input);
    let mut driver = FakeDriver::new(device);
    let queues = driver.transport.kicks().len();
    driver.bring_up();
    for _ in 0..STEPS_MAX {
        if input.is_empty() {
            break;
        }
        step(&mut input, &mut driver, queues);
        host.step(&mut input, &driver);
    }
    driver.reset();
    driver.bring_up();
    host.serves(&mut driver);
    assert_eq!(driver.status() & NEEDS_RESET, 0);
}

fn device(input: &mut Input<'_>) -> (Box<dyn Device>, Host) {
    match input.u8() % 5 {
        0 => (Box::new(Console::new(io::sink())), Host::Console),
        1 => (Box::new(Rng::default()), Host::Rng),
        2 => {
            let (device, host) = Mem::new(REGION, Box::new(NoBacking)).unwrap();
            (Box::new(device), Host::Mem(host))
        }
        3 => {
            let (device, host) = Vsock::new(3, vec![1024]).unwrap();
            (Box::new(device), Host::Vsock(host, Vec::new()))
        }
        _ => {
            let config = FsConfig {
                tag: "husk".into(),
                root: share(),
                proc_self_fd: proc_self_fd(),
            };
            (Box::new(Fs::new(config).unwrap()), Host::Fs)
        }
    }
}

/// An empty directory.
fn share() -> String {
    let path = std::env::temp_dir().join(format!("husk-fuzz-devices-{}", std::process::id()));
    std::fs::create_dir_all(&path).unwrap();
    path.to_str().unwrap().to_owned()
}

fn proc_self_fd() -> OwnedFd {
    rustix::fs::open(
        "/proc/self/fd",
        OFlags::PATH | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .unwrap()
}

fn step(input: &mut Input<'_>, driver: &mut FakeDriver, queues: usize) {
    let queue = usize::from(input.u8()) % queues;
    let base = u64::try_from(queue).unwrap() * RING_BYTES;
    let put = |driver: &FakeDriver, at: u64, bytes: &[u8]| {
        driver
            .memory
            .write_slice(bytes, GuestAddress(base + at))
            .unwrap();
    };
    match input.u8() % 16 {
        0 => driver.transport.pause(),
        1 => driver.transport.resume(),
        2 => {
            driver.reset();
            driver.bring_up();
        }
        3 => {
            let offset = u64::from(input.u16() % 0x200);
            let value = match input.u8() & 1 {
                0 => input.u32(),
                _ => u32::from(input.u8()),
            };
            driver.write(offset, value);
        }
        4 => lay_out(input, driver, queue, base),
        5 => driver.lie_about_available(queue, input.of(&[1, 2, 16, 17, 0x8000, 0xffff])),
        6 => {
            let table = input.of(&[AVAILABLE, USED, 0, BUFFERS]);
            let at = table + u64::from(input.u8());
            let length = usize::from(input.u8() % 16);
            put(driver, at, input.bytes(length));
        }
        7 | 8 => {
            let at = 16 * u64::from(input.u8() % 20);
            let address = match input.u8() % 4 {
                0 => input.u64(),
                1 => base + BUFFERS,
                2 => base + u64::from(input.u16()),
                _ => u64::from(input.u32()),
            };
            put(driver, at, &address.to_le_bytes());
            let length = input.of(&[0u32, 1, 16, 24, 44, 45, 320, 4096, 0x2_0000, u32::MAX]);
            put(driver, at + 8, &length.to_le_bytes());
            put(driver, at + 12, &u16::from(input.u8() & 7).to_le_bytes());
            put(driver, at + 14, &u16::from(input.u8() % 20).to_le_bytes());
        }
        9..=12 => {
            let length = usize::from(input.u8());
            let room = input.of(&[0u32, 1, 10, 45, 4096, 0x8000]);
            let bytes = input.bytes(length);
            if !bytes.is_empty() || room > 0 {
                driver.offer(queue, bytes, room);
            }
        }
        _ => {
            worker::turn();
        }
    }
}

/// Lays a queue out where the input says, so that its tables may lie in each other, then the driver
/// is there.
fn lay_out(input: &mut Input<'_>, driver: &mut FakeDriver, queue: usize, base: u64) {
    driver.reset();
    driver.negotiate();
    driver.write(0x030, u32::try_from(queue).unwrap());
    driver.write(0x038, 1 << (input.u8() % 5));
    for register in [0x080, 0x090, 0x0a0] {
        let address = base + 16 * u64::from(input.u16() % 0x300);
        driver.write(register, u32::try_from(address).unwrap());
    }
    driver.write(0x044, 1);
    for other in (0..driver.transport.kicks().len()).filter(|other| *other != queue) {
        let base = u32::try_from(other).unwrap() << 21;
        driver.write(0x030, u32::try_from(other).unwrap());
        driver.write(0x038, 16);
        for (register, table) in [(0x080, 0), (0x090, 0x1000), (0x0a0, 0x2000)] {
            driver.write(register, base + table);
        }
        driver.write(0x044, 1);
    }
    driver.write(STATUS, 15);
}

impl Host {
    /// What a host does meanwhile.
    fn step(&mut self, input: &mut Input<'_>, driver: &FakeDriver) {
        let choice = input.u8();
        match self {
            Self::Mem(host) if choice & 7 == 0 => {
                let blocks = u64::from(choice >> 4);
                let asked = host.request(blocks * BLOCK_BYTES, 8 * BLOCK_BYTES);
                assert_eq!(asked.is_ok(), blocks <= 8);
                driver.transport.irq().configuration().unwrap();
            }
            Self::Vsock(host, streams) if choice & 7 == 0 => {
                let (ours, theirs) = UnixStream::pair().unwrap();
                let taken = host.connect(u32::from(choice), theirs.into());
                streams.extend(taken.is_ok().then_some(ours));
            }
            Self::Vsock(host, streams) if choice & 7 == 1 => {
                streams.extend(host.accepted().map(|(_, stream)| UnixStream::from(stream)));
            }
            Self::Vsock(_, streams) if choice & 7 == 2 => drop(streams.pop()),
            _ => {}
        }
    }

    /// An honest driver is served: the one request each device has that takes no preparation.
    fn serves(&self, driver: &mut FakeDriver) {
        match self {
            Self::Console => assert_eq!(exchange(driver, 1, b"hello", 0), b""),
            Self::Rng => assert_eq!(exchange(driver, 0, &[], 8).len(), 8),
            Self::Mem(_) => {
                let mut unplug_all = [0; 24];
                unplug_all[0] = 2;
                assert_eq!(exchange(driver, 0, &unplug_all, 16), [0; 10]);
            }
            Self::Vsock(..) => {
                let mut packet = [0; 44];
                packet[..2].copy_from_slice(&[3, 0]);
                packet[8] = 2;
                packet[28..31].copy_from_slice(&[1, 0, 5]);
                driver.offer(1, &packet, 0);
                // What the host had dialled is asked for before or after.
                for _ in 0..8 {
                    driver.offer(0, &[], 4096);
                }
                let reset = |answer: &[u8]| answer[30] == 3;
                assert!((0..8).any(|_| reset(&served(driver, 0))), "no reset");
            }
            Self::Fs => {
                let mut init = vec![0; 104];
                init[0] = 104;
                init[4] = 26;
                init[40] = 7;
                init[44] = 41;
                init[52..56].copy_from_slice(&(1u32 << 27 | 1 << 30).to_le_bytes());
                assert!(exchange(driver, 1, &init, 4096).len() > 16);
            }
        }
    }
}

fn exchange(driver: &mut FakeDriver, queue: usize, sent: &[u8], room: u32) -> Vec<u8> {
    driver.offer(queue, sent, room);
    served(driver, queue)
}

fn served(driver: &mut FakeDriver, queue: usize) -> Vec<u8> {
    for _ in 0..TURNS_MAX {
        if let Some(answer) = driver.used(queue) {
            return answer;
        }
        worker::turn();
    }
    panic!(
        "an honest driver is not served; status {:#x}",
        driver.status()
    );
}
