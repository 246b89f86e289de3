//! A whole machine on real KVM, with a kernel of a few bytes: built, run, paused, resumed and ended
//! by its guest.

use std::io::Write as _;
use std::sync::Arc;

use husk_vmm::config::Plan;
use husk_vmm::host::{self, Host};
use husk_vmm::log::Log;
use husk_vmm::machine::Machine;
use husk_vmm::timeline::Timeline;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tempfile::NamedTempFile;
use vmm_api::{Cpus, Jail, StopReason, VmConfig, Vsock};
use vmm_virtio::Event;

/// Where a kernel is loaded and entered.
const ENTRY: u64 = 16 << 20;
const DEADLINE: Timespec = Timespec {
    tv_sec: 60,
    tv_nsec: 0,
};

/// An ELF file whose one segment is `code`.
fn kernel(code: &[u8]) -> NamedTempFile {
    const HEADERS: u64 = 64 + 56;
    let mut elf = Vec::new();
    elf.extend(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    elf.extend([2u16, 62].iter().flat_map(|half| half.to_le_bytes()));
    elf.extend(1u32.to_le_bytes());
    elf.extend([ENTRY, 64, 0].iter().flat_map(|long| long.to_le_bytes()));
    elf.extend(0u32.to_le_bytes());
    elf.extend(
        [64u16, 56, 1, 64, 0, 0]
            .iter()
            .flat_map(|half| half.to_le_bytes()),
    );
    // PT_LOAD, to be read and executed.
    elf.extend([1u32, 5].iter().flat_map(|word| word.to_le_bytes()));
    let length = u64::try_from(code.len()).unwrap();
    elf.extend(
        [HEADERS, ENTRY, ENTRY, length, length, 4096]
            .iter()
            .flat_map(|long| long.to_le_bytes()),
    );
    elf.extend(code);
    // As long as what the loader reads at once.
    elf.resize(elf.len().max(8192), 0);
    let mut file = NamedTempFile::new().unwrap();
    file.write_all(&elf).unwrap();
    file
}

/// A machine with this kernel, of which no thread has a filter.
fn machine(code: &[u8]) -> Machine {
    let kernel = kernel(code);
    let mut initrd = NamedTempFile::new().unwrap();
    initrd.write_all(b"initrd").unwrap();
    let config = VmConfig {
        id: "test".into(),
        cpus: Cpus { boot: 1, max: 2 },
        memory_mib: 64,
        memory_max_mib: 128,
        kernel: kernel.path().into(),
        initrd: initrd.path().into(),
        cmdline: Vec::new(),
        vsock: Vsock {
            cid: 3,
            host_ports: vec![1024],
        },
        share: None,
        jail: Jail {
            enabled: false,
            seccomp: false,
            own_network: false,
        },
    };
    let plan = Plan::new(config, host::memory_mib()).unwrap();
    let host = Host::open(&plan).unwrap();
    let log = Log::new(tempfile::tempfile().unwrap().into()).unwrap();
    Machine::build(&plan, host, log, Arc::new(Timeline::default())).unwrap()
}

fn wait(event: &Event) {
    let mut files = [PollFd::new(event, PollFlags::IN)];
    assert_eq!(poll(&mut files, Some(&DEADLINE)), Ok(1), "nothing happens");
}

fn pause(machine: &mut Machine) {
    machine.begin_pause();
    assert!(!machine.is_running());
    while !machine.advance().unwrap() {
        wait(machine.progress());
    }
}

#[test]
fn machine_runs_until_its_guest_powers_it_off() {
    // mov dx, 0x600; mov al, 1; out dx, al; jmp $
    let mut machine = machine(&[0x66, 0xba, 0x00, 0x06, 0xb0, 0x01, 0xee, 0xeb, 0xfe]);
    assert!(!machine.is_running());
    machine.resume();
    wait(machine.ending().event());
    assert_eq!(
        machine.ending().take().unwrap().unwrap(),
        StopReason::PoweredOff
    );
    // What has ended pauses at once.
    pause(&mut machine);
}

#[test]
fn machine_pauses_resumes_and_is_asked_for_memory_in_between() {
    // out 0x80, al; jmp back
    let mut machine = machine(&[0xe6, 0x80, 0xeb, 0xfc]);
    for _ in 0..3 {
        machine.resume();
        machine.resize(96).unwrap();
        assert!(machine.resize(8).is_err());
        pause(&mut machine);
        let exits = machine.stats().user_exits;
        machine.begin_pause();
        assert!(machine.advance().unwrap());
        assert_eq!(machine.stats().user_exits, exits);
        assert_eq!(machine.memory_mib(), 64);
        machine.resize(128).unwrap();
    }
    assert!(machine.resize(130).is_err());
}
