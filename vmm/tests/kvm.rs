//! vCPUs on real KVM, with guests of a few bytes in real mode: what they do to the ports, how they end, and that they pause.

#![expect(clippy::unwrap_used, reason = "a case whose set-up fails has failed")]

/// The jail, attacked from within.
mod jail;
/// A whole machine.
mod machine;

use std::fs::File;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use husk_vmm::bus::Bus;
use husk_vmm::ending::Ending;
use husk_vmm::kvm::{Kvm, Vm};
use husk_vmm::layout::SLOTS;
use husk_vmm::log::Log;
use husk_vmm::memory::{self, Leaked};
use husk_vmm::starter::Starter;
use husk_vmm::timeline::Timeline;
use husk_vmm::vcpu::{Surroundings, Vcpu, kick};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use vm_memory::{Bytes, GuestAddress};
use vmm_api::StopReason;
use vmm_virtio::{Confine, Event};

const MEMORY_BYTES: u64 = 1 << 20;
/// Memory that is not plugged, where real mode just reaches.
const REGION: Range<u64> = 1 << 20..3 << 20;
const CODE: u64 = 0x1000;
const COUNTER: u64 = 0x2000;
const DEADLINE: Duration = Duration::from_secs(60);
const LOOK_EVERY: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 1_000_000,
};

/// A machine without devices.
struct Guest {
    // In the order in which they may be dropped.
    vcpu: Vcpu,
    memory: Leaked,
    timeline: Arc<Timeline>,
    ending: Arc<Ending>,
    log: File,
    _vm: Vm,
}

impl Guest {
    fn new(code: &[u8]) -> Self {
        kick::install().unwrap();
        let vm = Kvm::open(1).unwrap().create_vm().unwrap();
        let memory = memory::allocate(&[(0, MEMORY_BYTES)], &REGION).unwrap();
        memory::write(&memory, CODE, code).unwrap();
        vm.set_memory(&memory, u64::MAX).unwrap();
        let fd = vm.create_vcpu(0).unwrap();
        let mut special = fd.get_sregs().unwrap();
        (special.cs.base, special.cs.selector) = (0, 0);
        fd.set_sregs(&special).unwrap();
        let mut registers = fd.get_regs().unwrap();
        (registers.rip, registers.rflags) = (CODE, 2);
        fd.set_regs(&registers).unwrap();

        let log = tempfile::tempfile().unwrap();
        let sink = Log::new(log.try_clone().unwrap().into()).unwrap();
        let starter = Starter::spawn(Confine::none()).unwrap();
        let (timeline, ending) = (Arc::default(), Arc::new(Ending::new().unwrap()));
        let surroundings = Surroundings {
            bus: Arc::new(Bus::new([const { None }; SLOTS], starter, sink)),
            timeline: Arc::clone(&timeline),
            ending: Arc::clone(&ending),
            rested: Arc::new(Event::new().unwrap()),
            confine: Confine::none(),
        };
        let vcpu = Vcpu::spawn(0, fd, surroundings).unwrap();
        Self {
            vcpu,
            memory,
            timeline,
            ending,
            log,
            _vm: vm,
        }
    }

    /// Runs the guest to its end.
    fn end(&self) -> Result<StopReason, String> {
        self.vcpu.resume();
        let mut files = [PollFd::new(self.ending.event(), PollFlags::IN)];
        let deadline = Timespec {
            tv_sec: 60,
            tv_nsec: 0,
        };
        assert_eq!(
            poll(&mut files, Some(&deadline)),
            Ok(1),
            "the guest does not end"
        );
        self.ending
            .take()
            .unwrap()
            .map_err(|error| error.to_string())
    }

    fn counter(&self) -> u32 {
        self.memory.read_obj(GuestAddress(COUNTER)).unwrap()
    }

    fn wait_for_counter_beyond(&self, value: u32) {
        let start = Instant::now();
        while self.counter() == value {
            assert!(start.elapsed() < DEADLINE, "the guest does not run");
            // Nobody tells of the guest's memory: the CPU is left to it for a while.
            poll(&mut [], Some(&LOOK_EVERY)).unwrap();
        }
    }
}

#[test]
fn power_port_ends_the_machine() {
    // mov dx, 0x600; mov al, 1; out dx, al; jmp $
    let guest = Guest::new(&[0xba, 0x00, 0x06, 0xb0, 0x01, 0xee, 0xeb, 0xfe]);
    assert_eq!(guest.end(), Ok(StopReason::PoweredOff));
}

#[test]
fn keyboard_controller_resets() {
    // mov al, 0xfe; out 0x64, al; jmp $
    let guest = Guest::new(&[0xb0, 0xfe, 0xe6, 0x64, 0xeb, 0xfe]);
    assert_eq!(guest.end(), Ok(StopReason::Reset));
}

#[test]
fn triple_fault_is_a_reset() {
    // lidt [0x3000], a limit of 0; int3
    let guest = Guest::new(&[0x0f, 0x01, 0x1e, 0x00, 0x30, 0xcc]);
    assert_eq!(guest.end(), Ok(StopReason::Reset));
}

#[test]
fn touching_memory_that_is_not_plugged_ends_the_machine() {
    // mov ax, 0xffff; mov ds, ax; mov [0x10], al; jmp $
    let guest = Guest::new(&[0xb8, 0xff, 0xff, 0x8e, 0xd8, 0xa2, 0x10, 0x00, 0xeb, 0xfe]);
    let wanted = "vcpu 0 touched memory that the machine does not have";
    assert_eq!(guest.end(), Err(wanted.into()));
}

#[test]
fn port_without_device_reads_as_ones() {
    // in al, 0x60; mov dx, 0x600; out dx, al; mov al, 1; out dx, al
    let guest = Guest::new(&[
        0xe4, 0x60, 0xba, 0x00, 0x06, 0xee, 0xb0, 0x01, 0xee, 0xeb, 0xfe,
    ]);
    assert_eq!(guest.end(), Ok(StopReason::PoweredOff));
    assert_eq!(guest.timeline.marks()[0].name, "255");
}

#[test]
fn early_console_reaches_the_log() {
    // mov dx, 0x3f8; mov al, 'h'; out dx, al; mov al, '\n'; out dx, al; mov al, 0xfe; out 0x64, al
    let code = [
        0xba, 0xf8, 0x03, 0xb0, b'h', 0xee, 0xb0, b'\n', 0xee, 0xb0, 0xfe, 0xe6, 0x64,
    ];
    let guest = Guest::new(&code);
    assert_eq!(guest.end(), Ok(StopReason::Reset));
    let mut text = [0; 2];
    std::os::unix::fs::FileExt::read_exact_at(&guest.log, &mut text, 0).unwrap();
    assert_eq!(&text, b"h\n");
}

#[test]
fn paused_vcpu_stands_still_and_goes_on() {
    // inc dword [0x2000]; jmp back
    let guest = Guest::new(&[0x66, 0xff, 0x06, 0x00, 0x20, 0xeb, 0xf9]);
    for _ in 0..3 {
        let before = guest.counter();
        guest.vcpu.resume();
        guest.wait_for_counter_beyond(before);
        guest.vcpu.pause();
        guest.vcpu.wait_paused();
        let paused = guest.counter();
        guest.vcpu.pause();
        guest.vcpu.wait_paused();
        assert_eq!(guest.counter(), paused);
    }
}

#[test]
fn halted_vcpu_pauses_and_finishes() {
    // hlt; jmp back
    let guest = Guest::new(&[0xf4, 0xeb, 0xfd]);
    guest.vcpu.resume();
    guest.vcpu.pause();
    guest.vcpu.wait_paused();
    guest.vcpu.resume();
    drop(guest.vcpu);
    assert!(guest.ending.take().is_none());
}
