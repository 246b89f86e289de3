//! Chains of descriptors without end, without sense, and without memory behind them.

use crate::cpu;
use crate::log::Report;
use crate::transport::{
    Descriptor, Device, INDIRECT, NEXT, SIZE, WRITE, answer_of, memory_of, request_queue,
};

/// Lengths that lie, and that wrap around whatever address they are added to.
const LENGTHS: [u32; 8] = [
    0,
    1,
    43,
    0x1_0000,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_f000,
    u32::MAX,
];

/// Where a table of indirect descriptors is laid out.
fn table_of(slot: u8) -> u64 {
    memory_of(slot) + 0x3_0000
}

/// Offers one chain that begins at descriptor 0 on a device that has just been brought up.
fn try_chain(report: &mut Report, device: Device, chain: &[Descriptor]) {
    report.tried();
    let mut live = device.bring_up(SIZE);
    let queue = request_queue(device.slot);
    for (index, descriptor) in (0..).zip(chain) {
        live.rings[queue].describe(index, *descriptor);
    }
    live.rings[queue].offer(0);
    device.kick(queue as u32);
    live.settle(queue);
}

/// Chains in the queue's own table; afterwards each device works.
pub(crate) fn direct(report: &mut Report) {
    for device in Device::all() {
        let good = Descriptor {
            address: answer_of(device.slot),
            length: 64,
            flags: 0,
            next: 0,
        };
        let (loops, writes) = (NEXT, WRITE | NEXT);
        for flags in [loops, writes] {
            for next in [0, 1, SIZE - 1, SIZE, 255, 65535] {
                let chain = [Descriptor {
                    flags,
                    next,
                    ..good
                }; SIZE as usize];
                try_chain(report, device, &chain);
            }
            let ring: [Descriptor; SIZE as usize] = core::array::from_fn(|index| Descriptor {
                flags,
                next: (index as u16 + 1) % SIZE,
                ..good
            });
            try_chain(report, device, &ring);
        }
        outside(report, device, good);
        // To be written first, to be read afterwards; flags that nobody knows.
        let first = Descriptor {
            flags: writes,
            next: 1,
            ..good
        };
        try_chain(report, device, &[first, Descriptor { flags: 0, ..good }]);
        try_chain(
            report,
            device,
            &[Descriptor {
                flags: 0xfff8,
                ..good
            }],
        );
        report.expect(
            device.works(),
            format_args!("device {} does not work after wrong chains", device.slot),
        );
    }
}

/// Lengths and addresses that are not in memory, in the first descriptor and in the second one.
fn outside(report: &mut Report, device: Device, good: Descriptor) {
    for flags in [0, WRITE] {
        for length in LENGTHS {
            try_chain(
                report,
                device,
                &[Descriptor {
                    length,
                    flags,
                    ..good
                }],
            );
            let wraps = 0u64.wrapping_sub(u64::from(length));
            for address in [
                wraps,
                u64::MAX,
                cpu::ram_end() - 1,
                cpu::ram_end(),
                0xd000_0000,
            ] {
                let bad = Descriptor {
                    address,
                    length,
                    flags,
                    next: 0,
                };
                try_chain(report, device, &[bad]);
                let first = Descriptor {
                    flags: flags | NEXT,
                    next: 1,
                    ..good
                };
                try_chain(report, device, &[first, bad]);
            }
        }
    }
}

/// Chains in tables of their own; afterwards each device works.
pub(crate) fn indirect(report: &mut Report) {
    for device in Device::all() {
        let table = table_of(device.slot);
        let entry = Descriptor {
            address: answer_of(device.slot),
            length: 16,
            flags: NEXT,
            next: 0,
        };
        let outer = |address, length, flags| Descriptor {
            address,
            length,
            flags: INDIRECT | flags,
            next: 1,
        };
        // Every entry of a full table leads on, to itself, to the next one, to beyond.
        for next in [0, 1, 2, 255, 4095, 65535] {
            for index in 0..0x1000 {
                let next = if next == 2 { index as u16 + 1 } else { next };
                Descriptor { next, ..entry }.put(table, index);
            }
            for length in [16, 32, 0x1_0000, 0xf_fff0, 0x10_0000, 0xffff_fff0] {
                try_chain(report, device, &[outer(table, length, 0)]);
            }
        }
        for length in [0, 1, 15, 17, 31, u32::MAX] {
            try_chain(report, device, &[outer(table, length, 0)]);
        }
        // A table in a table, one in itself, one with a chain behind it, one to be written.
        Descriptor {
            flags: INDIRECT,
            address: table,
            length: 16,
            next: 0,
        }
        .put(table, 0);
        try_chain(report, device, &[outer(table, 16, 0)]);
        Descriptor {
            flags: INDIRECT | NEXT,
            address: table,
            length: 32,
            next: 1,
        }
        .put(table, 0);
        try_chain(report, device, &[outer(table, 32, 0)]);
        Descriptor { flags: 0, ..entry }.put(table, 0);
        try_chain(report, device, &[outer(table, 16, NEXT), entry]);
        try_chain(report, device, &[outer(table, 16, WRITE)]);
        let end = cpu::ram_end();
        for address in [
            0,
            1,
            end - 8,
            end - 16,
            end,
            0xd000_0000,
            1 << 40,
            u64::MAX - 15,
            u64::MAX,
        ] {
            try_chain(report, device, &[outer(address, 64, 0)]);
        }
        report.expect(
            device.works(),
            format_args!("device {} does not work after wrong tables", device.slot),
        );
    }
}
