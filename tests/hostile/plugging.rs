//! Orders of the memory device: memory that nobody offered, in patterns that cost the host, and memory that is not there any more.

use crate::cpu;
use crate::log::{Report, say};
use crate::transport::{CONFIG, Device, Live, MEM, RNG, SIZE, WRITE};

const PLUG: u16 = 0;
const UNPLUG: u16 = 1;
const UNPLUG_ALL: u16 = 2;
const STATE: u16 = 3;

/// Answers.
const ACK: u16 = 0;
const ERROR: u16 = 3;

const BLOCK: u64 = 2 << 20;
/// How often every other block is plugged and unplugged.
const ROUNDS: u32 = 12;

struct Memory {
    live: Live,
    start: u64,
    size: u64,
}

impl Memory {
    fn new(report: &mut Report) -> Option<Self> {
        let Some(device) = Device::at(MEM) else {
            report.wrong(format_args!("there is no memory device"));
            return None;
        };
        Some(Self {
            live: device.bring_up(SIZE),
            start: config(16),
            size: config(24),
        })
    }

    /// The device's answer, and `u16::MAX` if there is none.
    fn order(&mut self, kind: u16, address: u64, count: u16) -> u16 {
        let mut request = [0; 24];
        request[..2].copy_from_slice(&kind.to_le_bytes());
        request[8..16].copy_from_slice(&address.to_le_bytes());
        request[16..18].copy_from_slice(&count.to_le_bytes());
        match self.live.ask(0, &request, 10) {
            Some(10) => cpu::read16(crate::transport::answer_of(MEM)),
            _ => u16::MAX,
        }
    }

    /// Waits for the host to offer memory; how many blocks.
    fn offered(&self, report: &mut Report) -> u64 {
        say!("memory is wanted");
        let offered = cpu::wait(|| Some(config(48)).filter(|bytes| *bytes > 0));
        if offered.is_none() {
            report.wrong(format_args!("no memory is offered"));
        }
        offered.unwrap_or(0) / BLOCK
    }
}

fn config(offset: u64) -> u64 {
    cpu::read64(Device { slot: MEM }.address(CONFIG + offset))
}

/// Before any memory is offered: nothing can be had, and nothing is known of blocks that are not there.
pub(crate) fn out_of_range(report: &mut Report) {
    let Some(mut memory) = Memory::new(report) else {
        return;
    };
    let (start, end) = (memory.start, memory.start + memory.size);
    let addresses = [
        0,
        1,
        BLOCK,
        cpu::ram_end(),
        start - BLOCK,
        start - 1,
        start,
        start + 1,
        start + 4096,
        start + BLOCK,
        end - BLOCK,
        end - 1,
        end,
        end + BLOCK,
        1 << 62,
        u64::MAX - BLOCK + 1,
        u64::MAX,
    ];
    for address in addresses {
        for count in [0, 1, 2, 255, 32768, u16::MAX] {
            for kind in [PLUG, UNPLUG, STATE, 4, 255, u16::MAX] {
                let answer = memory.order(kind, address, count);
                report.expect(
                    (1..=ERROR).contains(&answer),
                    format_args!("order {kind} of {count} at {address:#x}: {answer}"),
                );
            }
        }
    }
    let answer = memory.order(UNPLUG_ALL, u64::MAX, u16::MAX);
    report.expect(
        answer == ACK,
        format_args!("nothing is not unplugged: {answer}"),
    );
    report.expect(
        config(40) == 0,
        format_args!("{} bytes are plugged", config(40)),
    );
    for length in [0, 1, 23] {
        report.tried();
        memory.live = memory.live.device.bring_up(SIZE);
        memory.live.ask(0, &[0; 24][..length], 10);
    }
    report.expect(
        memory.live.device.works(),
        format_args!("the memory device does not work after it"),
    );
}

/// Every other block, again and again, and then more than was offered.
pub(crate) fn alternate(report: &mut Report) {
    let Some(mut memory) = Memory::new(report) else {
        return;
    };
    let blocks = memory.offered(report);
    for round in 0..ROUNDS {
        for (kind, first) in [(PLUG, 0), (UNPLUG, 0), (PLUG, 1), (UNPLUG, 1)] {
            for block in (first..blocks).step_by(2) {
                let address = memory.start + block * BLOCK;
                let answer = memory.order(kind, address, 1);
                report.expect(
                    answer == ACK,
                    format_args!("round {round}, order {kind} of block {block}: {answer}"),
                );
                if kind == PLUG {
                    let old = cpu::read64(address);
                    report.expect(old == 0, format_args!("block {block} has {old:#x} in it"));
                    cpu::write64(address, u64::MAX);
                }
                let again = memory.order(kind, address, 1);
                report.expect(again != ACK, format_args!("twice: {again}"));
            }
        }
    }
    for first in [0, 1] {
        for block in (first..blocks + 64).step_by(2) {
            report.tried();
            memory.order(PLUG, memory.start + block * BLOCK, 1);
        }
    }
    let (plugged, requested) = (config(40), config(48));
    report.expect(
        plugged == requested,
        format_args!("{plugged} bytes are plugged, {requested} were offered"),
    );
}

/// The processor at memory that is not plugged: this ends the machine.
pub(crate) fn touch_unplugged(report: &mut Report) {
    let Some(memory) = Memory::new(report) else {
        return;
    };
    memory.offered(report);
    cpu::write64(memory.start, 1);
    report.wrong(format_args!("memory that is not plugged was written"));
}

/// A device at memory that is not plugged: this ends the machine, too, or the device.
pub(crate) fn ring_in_unplugged(report: &mut Report) {
    let Some(memory) = Memory::new(report) else {
        return;
    };
    memory.offered(report);
    let Some(device) = Device::at(RNG) else {
        return report.wrong(format_args!("there is no entropy device"));
    };
    let mut live = device.bring_up(SIZE);
    live.rings[0].offer_buffer(0, memory.start, 64, WRITE);
    device.kick(0);
    cpu::wait(|| device.is_broken().then_some(()));
    report.expect(
        device.is_broken(),
        format_args!("memory that is not plugged was filled"),
    );
}
