//! The device: its configuration space, its worker, its sessions.

use std::sync::Arc;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tempfile::TempDir;
use virtiofsd::fuse::{ForgetIn, InHeader, Opcode, OutHeader};
use vm_memory::ByteValued;

use super::client::{
    QUEUE_SIZE, Ring, guest_memory, init_body, linux_options, parse, proc_self_fd, with_nul,
};
use crate::fs::{Fs, FsConfig};
use crate::saved::SavedDevice;
use crate::worker::Failure;
use crate::{Confine, Device, Event, Irq, Queue, QueueState, Resources, StartError, Stopped};

/// Far apart in guest memory: the two queues.
const HIPRIO_BASE: u64 = 0;
const REQUEST_BASE: u64 = 0x4_0000;
const ROOM: u32 = 4096;

/// A device and its driver's memory.
struct Machine {
    device: Fs,
    directory: TempDir,
    rings: [Ring; 2],
    kicks: Vec<Event>,
    irq: Arc<Irq>,
    failure: Arc<Failure>,
}

impl Machine {
    fn new() -> Self {
        let directory = TempDir::new().unwrap();
        let memory = guest_memory();
        Self {
            device: Fs::new(FsConfig {
                tag: "husk".to_owned(),
                root: directory.path().to_str().unwrap().to_owned(),
                proc_self_fd: proc_self_fd(),
            })
            .unwrap(),
            directory,
            rings: [HIPRIO_BASE, REQUEST_BASE].map(|base| Ring::new(Arc::clone(&memory), base)),
            kicks: Vec::new(),
            irq: Arc::new(Irq::new(Event::new().unwrap())),
            failure: Arc::default(),
        }
    }

    fn start(&mut self, states: &[QueueState], saved: SavedDevice) -> Result<(), StartError> {
        let memory = Arc::clone(&self.rings[0].memory);
        self.kicks.clear();
        let mut queues = Vec::new();
        for state in states {
            let kick = Event::new().unwrap();
            self.kicks.push(kick.try_clone().unwrap());
            let irq = Arc::clone(&self.irq);
            queues.push(Some(
                Queue::new(state, QUEUE_SIZE, &memory, kick, irq).unwrap(),
            ));
        }
        self.device.start(Resources {
            memory,
            queues,
            irq: Arc::clone(&self.irq),
            features: 0,
            saved,
            confine: Confine::none(),
            failure: Arc::clone(&self.failure),
        })
    }

    fn start_fresh(&mut self) {
        let states = self.rings.each_ref().map(Ring::state);
        self.start(&states, SavedDevice::Fresh).unwrap();
    }

    fn resume(&mut self, stopped: Stopped) -> Result<(), StartError> {
        let states: Vec<_> = stopped.queues.into_iter().flatten().collect();
        self.start(&states, stopped.saved)
    }

    /// Sends a message by a queue and waits for the interrupt. The answer's errno.
    fn ask(&mut self, queue: usize, opcode: Opcode, inode: u64, body: &[u8]) -> i32 {
        let header = InHeader {
            len: u32::try_from(size_of::<InHeader>() + body.len()).unwrap(),
            opcode: opcode as u32,
            nodeid: inode,
            ..InHeader::default()
        };
        let ring = &mut self.rings[queue];
        let before = ring.used();
        ring.offer(&[header.as_slice(), body].concat(), ROOM);
        self.kicks[queue].signal().unwrap();
        while self.rings[queue].used() == before {
            let line = self.irq.line();
            let mut files = [PollFd::new(line, PollFlags::IN)];
            let seconds = Timespec {
                tv_sec: 20,
                tv_nsec: 0,
            };
            assert_eq!(poll(&mut files, Some(&seconds)), Ok(1), "no interrupt");
            line.clear().unwrap();
        }
        let reply = self.rings[queue].reply(size_of::<OutHeader>());
        -parse::<OutHeader>(&reply).error
    }

    fn init(&mut self) -> i32 {
        self.ask(1, Opcode::Init, 0, &init_body(linux_options()))
    }
}

#[test]
fn configuration_space_is_the_tag_and_one_request_queue() {
    let machine = Machine::new();
    let mut config = [0xff; 48];
    machine.device.read_config(0, &mut config);
    assert_eq!(&config[..5], b"husk\0");
    assert_eq!(&config[36..], [1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    let traits = machine.device.traits();
    assert_eq!((traits.id, traits.queue_sizes.len()), (26, 2));
}

#[test]
fn tag_must_fit() {
    for (length, fits) in [(0, false), (1, true), (36, true), (37, false)] {
        let config = FsConfig {
            tag: "t".repeat(length),
            root: "/".to_owned(),
            proc_self_fd: proc_self_fd(),
        };
        assert_eq!(Fs::new(config).is_ok(), fits);
    }
}

#[test]
fn requests_are_answered_and_forgets_are_taken_from_their_queue() {
    let mut machine = Machine::new();
    std::fs::write(machine.directory.path().join("a"), "").unwrap();
    machine.start_fresh();
    assert_eq!(machine.init(), 0);
    assert_eq!(machine.ask(1, Opcode::Lookup, 1, &with_nul(b"a")), 0);
    assert_eq!(machine.ask(1, Opcode::Open, 2, &[0; 8]), 0);
    machine.ask(0, Opcode::Forget, 2, ForgetIn { nlookup: 1 }.as_slice());
    assert_eq!(machine.ask(1, Opcode::Open, 2, &[0; 8]), libc::EBADF);
    assert!(!machine.failure.is_raised());
}

#[test]
fn session_goes_on_after_a_pause() {
    let mut machine = Machine::new();
    std::fs::write(machine.directory.path().join("a"), "").unwrap();
    machine.start_fresh();
    assert_eq!(machine.init(), 0);
    assert_eq!(machine.ask(1, Opcode::Lookup, 1, &with_nul(b"a")), 0);
    for pause in 1..=2 {
        let stopped = machine.device.stop().unwrap();
        assert_eq!(stopped.saved, SavedDevice::FsSession { pause });
        machine.resume(stopped).unwrap();
        assert_eq!(machine.ask(1, Opcode::Open, 2, &[0; 8]), 0);
    }
}

#[test]
fn reset_ends_the_session() {
    let mut machine = Machine::new();
    machine.start_fresh();
    assert_eq!(machine.init(), 0);
    assert_eq!(machine.ask(1, Opcode::Getattr, 1, &[0; 16]), 0);
    let stopped = machine.device.stop().unwrap();
    machine
        .resume(Stopped {
            saved: SavedDevice::Fresh,
            ..stopped
        })
        .unwrap();
    assert_eq!(machine.ask(1, Opcode::Getattr, 1, &[0; 16]), libc::EBADF);
}

#[test]
fn device_without_a_session_starts_in_another_process() {
    let mut machine = Machine::new();
    machine.start_fresh();
    let stopped = machine.device.stop().unwrap();
    assert_eq!(stopped.saved, SavedDevice::Fresh);
    let mut other = Machine::new();
    other.resume(stopped).unwrap();
    assert_eq!(other.init(), 0);
}

#[test]
fn session_of_another_device_is_refused() {
    let mut machine = Machine::new();
    machine.start_fresh();
    assert_eq!(machine.init(), 0);
    let stopped = machine.device.stop().unwrap();
    let refused = Machine::new().resume(stopped);
    assert!(matches!(refused, Err(StartError::WrongState)));
    assert!(machine.device.stop().is_none());
}

#[test]
fn chain_outside_memory_stops_the_device() {
    let mut machine = Machine::new();
    machine.start_fresh();
    assert_eq!(machine.init(), 0);
    let descriptor = [u64::MAX.to_le_bytes(), [16, 0, 0, 0, 0, 0, 0, 0]].concat();
    machine.rings[1].offer(b"", 0);
    machine.rings[1].put_descriptor(&descriptor);
    machine.kicks[1].signal().unwrap();
    // The worker runs, so it sees the kick before the order to stop.
    machine.device.stop().unwrap();
    assert!(machine.failure.is_raised());
    assert_eq!(machine.rings[1].used(), 1);
}

#[test]
fn missing_root_is_the_errno_of_init() {
    let mut machine = Machine::new();
    std::fs::remove_dir(machine.directory.path()).unwrap();
    machine.start_fresh();
    assert_eq!(machine.init(), libc::ENOENT);
    std::fs::create_dir(machine.directory.path()).unwrap();
    assert_eq!(machine.init(), 0);
}
