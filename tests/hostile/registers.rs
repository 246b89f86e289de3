//! Registers and configuration, read and written where, when and as wide as it makes no sense.

use crate::cpu;
use crate::log::Report;
use crate::transport::{
    ACKNOWLEDGE_DRIVER, CONFIG, DEVICE_FEATURES, DEVICE_FEATURES_SELECT, Device, Layout,
    QUEUE_SELECT, QUEUE_SIZE, QUEUE_SIZE_MAX, SIZE, STATUS, queues, request_queue,
};

/// Where the registers end and what follows is configuration.
const REGISTERS_END: u64 = CONFIG;
const VALUES: [u32; 5] = [0, 1, 0xff, 0x8000_0000, u32::MAX];

/// What must never change: magic, version, id, vendor, features, the largest size of the first queue.
fn identity(device: Device) -> [u32; 7] {
    let mut features = [0; 2];
    for (select, half) in (0..).zip(&mut features) {
        device.set(DEVICE_FEATURES_SELECT, select);
        *half = device.get(DEVICE_FEATURES);
    }
    device.set(QUEUE_SELECT, 0);
    let [low, high] = features;
    let registers = [0x000, 0x004, 0x008, 0x00c, QUEUE_SIZE_MAX].map(|offset| device.get(offset));
    let [magic, version, id, vendor, size] = registers;
    [magic, version, id, vendor, low, high, size]
}

/// All registers with wrong values and of every width, in each state of a device; afterwards it is what it was, and works.
pub(crate) fn in_every_state(report: &mut Report) {
    for device in Device::all() {
        let before = identity(device);
        for state in 0..4 {
            match state {
                0 => device.reset(),
                1 => device.set(STATUS, ACKNOWLEDGE_DRIVER),
                2 => device.negotiate(),
                _ => drop(device.bring_up(SIZE)),
            }
            for offset in (0..REGISTERS_END)
                .step_by(4)
                .filter(|offset| *offset != STATUS)
            {
                for value in VALUES {
                    device.set(offset, value);
                }
                report.tried();
                device.get(offset);
            }
            odd_widths(report, device);
            // Bits of the status that are not the driver's, one state after another.
            for value in [0x40, 0x80, 0xffff_ff00, 4, 8 | 4, u32::MAX, 0x10, 0x20] {
                device.set(STATUS, value);
            }
            let after = identity(device);
            report.expect(
                after == before,
                format_args!("device {} was {before:x?}, is {after:x?}", device.slot),
            );
        }
        report.expect(
            device.works(),
            format_args!("device {} does not work after wrong writes", device.slot),
        );
    }
    outside(report);
}

/// Reads and writes that are no register's.
fn odd_widths(report: &mut Report, device: Device) {
    for offset in [
        0x000, 0x001, 0x03, 0x30, 0x38, 0x44, 0x50, 0x52, 0x70, 0x71, 0x73, 0xa4, 0xfc, 0xff,
    ] {
        let at = device.address(offset);
        report.tried();
        cpu::read8(at);
        cpu::read16(at);
        cpu::read64(at);
        if offset & !3 != STATUS {
            cpu::write8(at, 0xff);
            cpu::write16(at, 0xffff);
            cpu::write64(at, u64::MAX);
        }
        cpu::write8(device.address(STATUS), 0);
        cpu::write64(device.address(STATUS), 0);
    }
}

/// Beside the windows: it reads as ones and takes nothing.
fn outside(report: &mut Report) {
    let free = [
        0xcfff_fff8,
        0xd000_5000,
        0xd000_5ff8,
        0xdfff_fff8,
        0xf000_0000,
    ];
    for address in free {
        cpu::write64(address, 0);
        report.expect(
            cpu::read32(address) == u32::MAX,
            format_args!("something is at {address:#x}"),
        );
    }
    // From the last byte of one window into the next.
    for slot in 0..5 {
        let edge = 0xd000_1000 + slot * 0x1000;
        for before in 1..8 {
            report.tried();
            cpu::read64(edge - before);
            cpu::write64(edge - before, u64::MAX);
        }
    }
}

/// The configuration space read and written byte by byte, word by word, far beyond its end; it stays what it is.
pub(crate) fn configuration(report: &mut Report) {
    const BYTES: u64 = 0xf00;
    for device in Device::all() {
        device.set(STATUS, ACKNOWLEDGE_DRIVER);
        let sum = |report: &mut Report| {
            report.tried();
            (0..64)
                .map(|at| u64::from(cpu::read8(device.address(CONFIG + at))))
                .sum::<u64>()
        };
        let before = sum(report);
        let steps = (0..80).chain([0x7f, 0xff, 0x100, 0x7fe, 0xeff - 8, BYTES - 8, BYTES - 1]);
        for offset in steps {
            let at = device.address(CONFIG + offset);
            report.tried();
            cpu::read16(at);
            cpu::read32(at);
            cpu::read64(at);
            cpu::write8(at, 0xa5);
            cpu::write16(at, 0xa5a5);
            cpu::write32(at, u32::MAX);
            cpu::write64(at, u64::MAX);
        }
        let after = sum(report);
        report.expect(
            before == after,
            format_args!("the configuration of device {} was written", device.slot),
        );
        let beyond = cpu::read32(device.address(CONFIG + 0x800));
        report.expect(
            beyond == 0,
            format_args!(
                "{beyond:#x} beyond the configuration of device {}",
                device.slot
            ),
        );
        device.reset();
    }
}

/// Queues that are laid out anew while the device runs: it goes on with the old ones.
pub(crate) fn queues_while_running(report: &mut Report) {
    for device in Device::all() {
        let queue = request_queue(device.slot);
        let mut live = device.bring_up(SIZE);
        let wrong = Layout {
            size: 8,
            descriptors: 0xd000_0000,
            available: u64::MAX,
            used: cpu::ram_end() - 2,
        };
        for selected in 0..queues(device.slot) + 2 {
            device.lay_out(selected, wrong);
            device.set(QUEUE_SELECT, selected);
            device.set(QUEUE_SIZE, 0);
            device.set(crate::transport::QUEUE_READY, 0);
        }
        device.set(QUEUE_SELECT, u32::MAX);
        // FUSE answers an INIT, a console takes anything, and so on: the shortest of each.
        let request = [0; 44];
        live.rings[0].offer_buffer(
            2,
            crate::transport::answer_of(device.slot),
            64,
            crate::transport::WRITE,
        );
        device.kick(0);
        let answered = live.ask(queue, &request, 16).is_some() || device.is_broken();
        report.expect(
            answered,
            format_args!("device {} neither went on nor gave up", device.slot),
        );
        report.expect(
            device.works(),
            format_args!("device {} does not work after that", device.slot),
        );
    }
}
