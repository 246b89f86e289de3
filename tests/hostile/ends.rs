//! How a guest may end, or go on for ever, and addresses behind which there is nothing.

use crate::cpu;
use crate::log::Report;

/// Reads and writes where there is neither memory nor a device: ones, and nothing happens.
pub(crate) fn nowhere(report: &mut Report) {
    let end = cpu::ram_end();
    for address in [
        end,
        end + 4088,
        0xbfff_fff8,
        0xc000_0000,
        0xfec0_1000,
        2 << 32,
        (4 << 32) - 8,
    ] {
        cpu::write64(address, 0x5555);
        let value = cpu::read64(address);
        report.expect(
            value == u64::MAX,
            format_args!("{value:#x} is at {address:#x}"),
        );
        cpu::write8(address + 1, 1);
        cpu::read16(address + 3);
        cpu::read32(address + 2);
    }
}

pub(crate) fn reset(_: &mut Report) {
    cpu::reset()
}

pub(crate) fn power_off(_: &mut Report) {
    cpu::power_off()
}

pub(crate) fn triple_fault(_: &mut Report) {
    cpu::triple_fault()
}

/// Sleeps for ever, with interrupts off.
pub(crate) fn halt(_: &mut Report) {
    cpu::halt()
}

/// Runs for ever without leaving guest mode by itself.
pub(crate) fn spin(_: &mut Report) {
    loop {
        core::hint::spin_loop();
    }
}
