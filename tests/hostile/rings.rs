//! Queues that cannot be: sizes and addresses without sense, and indices that lie.

use crate::cpu;
use crate::log::Report;
use crate::transport::{
    Device, Layout, QUEUE_READY, SIZE, WRITE, answer_of, queues, request_queue,
};

/// Sizes that no queue has, or that this device's has not.
const SIZES: [u32; 12] = [
    0,
    1,
    3,
    5,
    100,
    4096,
    32767,
    32768,
    65535,
    65536,
    0x8000_0000,
    u32::MAX,
];

/// Addresses outside of memory and at its edges; those of `end` are relative to where it ends.
fn addresses() -> [u64; 20] {
    let end = cpu::ram_end();
    [
        0,
        1,
        0x1000 + 1,
        0xa_0000,
        end - 1,
        end - 2,
        end - 4,
        end - 16,
        end,
        end + 4096,
        0xc000_0000,
        0xd000_0000,
        0xd000_0050,
        0xfee0_0000,
        1 << 33,
        1 << 40,
        1 << 52,
        1 << 63,
        u64::MAX - 15,
        u64::MAX,
    ]
}

/// Every device with every wrong layout of each of its queues; afterwards it works.
pub(crate) fn layouts(report: &mut Report) {
    for device in Device::all() {
        for queue in 0..queues(device.slot) {
            let honest = Layout::honest(device.slot, queue, SIZE);
            for size in SIZES {
                try_layout(report, device, queue, Layout { size, ..honest });
            }
            for address in addresses() {
                let (descriptors, available, used) = (address, address, address);
                try_layout(
                    report,
                    device,
                    queue,
                    Layout {
                        descriptors,
                        ..honest
                    },
                );
                try_layout(
                    report,
                    device,
                    queue,
                    Layout {
                        available,
                        ..honest
                    },
                );
                try_layout(report, device, queue, Layout { used, ..honest });
            }
            // On top of each other, all of them or two.
            let at = honest.descriptors;
            for (available, used) in [(at, at), (at, honest.used), (honest.available, at)] {
                try_layout(
                    report,
                    device,
                    queue,
                    Layout {
                        available,
                        used,
                        ..honest
                    },
                );
            }
            let used = honest.available;
            try_layout(report, device, queue, Layout { used, ..honest });
        }
        report.expect(
            device.works(),
            format_args!("device {} does not work after wrong layouts", device.slot),
        );
    }
}

/// One queue laid out wrong, the others right; then chains and kicks on all.
fn try_layout(report: &mut Report, device: Device, wrong: u32, layout: Layout) {
    report.tried();
    device.negotiate();
    for queue in 0..queues(device.slot) {
        let honest = Layout::honest(device.slot, queue, SIZE);
        cpu::fill(honest.descriptors, 0, 0x1_0000);
        // A chain is on offer, whatever the tables are taken for.
        cpu::write64(honest.descriptors, answer_of(device.slot));
        cpu::write32(honest.descriptors + 8, 64);
        cpu::write16(honest.descriptors + 12, WRITE);
        cpu::write16(honest.available + 2, 1);
        device.lay_out(queue, if queue == wrong { layout } else { honest });
    }
    device.go();
    for queue in 0..queues(device.slot) {
        device.kick(queue);
    }
    // An answer takes the device's lock, behind its start.
    device.get(QUEUE_READY);
}

/// Indices of the available ring that jump, before and while the device looks; afterwards it works.
pub(crate) fn indices(report: &mut Report) {
    const JUMPS: [u16; 8] = [SIZE + 1, SIZE, 255, 32767, 32768, 65534, 65535, 0];
    const HEADS: [u16; 6] = [SIZE, SIZE + 1, 255, 32768, 65534, 65535];
    for device in Device::all() {
        let queue = request_queue(device.slot);
        for jump in JUMPS {
            report.tried();
            let live = device.bring_up(SIZE);
            live.rings[queue].publish(jump);
            device.kick(queue as u32);
            live.settle(queue);
            for _ in 0..16 {
                live.rings[queue].publish(jump.wrapping_mul(31));
                device.kick(queue as u32);
                live.rings[queue].publish(jump);
                device.kick(queue as u32);
            }
        }
        for head in HEADS {
            let mut live = device.bring_up(SIZE);
            live.rings[queue].offer(head);
            device.kick(queue as u32);
            live.settle(queue);
            let is_refused = device.is_broken() || live.rings[queue].out() > 0;
            report.expect(
                is_refused,
                format_args!("device {} took chain {head} of {SIZE}", device.slot),
            );
        }
        report.expect(
            device.works(),
            format_args!(
                "device {} does not work after indices that lie",
                device.slot
            ),
        );
    }
}
