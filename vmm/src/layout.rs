//! The guest's physical address map and interrupt numbers: constants, checked against each other at compile time.
//!
//! ```text
//!   0x0000_0500  GDT                       0x000f_0000  MP table
//!   0x0000_7000  zero page                 0x0010_0000  RAM ...
//!   0x0000_8000  boot stack (grows down)   0x0100_0000  ... where kernels are linked to run
//!   0x0000_9000  page tables               0xc000_0000  nothing is mapped from here to 4 GiB but devices
//!   0x0002_0000  command line              0xd000_0000  virtio slots, 4 KiB each
//!   0x0009_fc00  end of low RAM            0x1_0000_0000  RAM beyond 3 GiB
//!                                          next 2 GiB     the region of memory that comes and goes
//! ```

use std::ops::Range;

use vmm_virtio::mem;

/// The unit of mappings, of memory slots and of device register windows.
pub const PAGE_BYTES: u64 = 4096;
/// The same as the length of an array.
pub const PAGE: usize = 4096;
/// Where memory that comes and goes may begin: Linux adds it by memory blocks, aligned to their size, which is 2 GiB in large machines.
pub const REGION_ALIGNMENT_BYTES: u64 = 2 << 30;
/// Guest memory is aligned to this on the host, so that both page tables can use huge pages.
pub const HUGE_PAGE_BYTES: u64 = 2 << 20;

/// The boot global descriptor table.
pub const GDT: u64 = 0x500;
/// `struct boot_params`, called the zero page.
pub const ZERO_PAGE: u64 = 0x7000;
/// Initial stack pointer.
pub const BOOT_STACK: u64 = 0x8ff0;
/// Three levels of identity mapping, one page each.
pub const PAGE_TABLES: u64 = 0x9000;
/// How many pages the boot page tables take.
pub const PAGE_TABLE_PAGES: usize = 3;
/// The kernel command line.
pub const CMDLINE: u64 = 0x2_0000;
/// The kernel's `COMMAND_LINE_SIZE` on x86, with the final NUL.
pub const CMDLINE_MAX_BYTES: usize = 2048;
/// Where low RAM ends for the guest.
pub const LOW_RAM_END: u64 = 0x9_fc00;
/// The MP floating pointer and its table: in the region that kernels search, and outside of what they take for RAM.
pub const MP_TABLE: u64 = 0xf_0000;
/// The MP table may grow to here.
pub const MP_TABLE_END: u64 = 0x10_0000;
/// RAM again.
pub const HIGH_RAM: u64 = 0x10_0000;

/// Devices live between here and [`MMIO_GAP_END`].
pub const MMIO_GAP: u64 = 0xc000_0000;
/// RAM continues here.
pub const MMIO_GAP_END: u64 = 0x1_0000_0000;
/// The first virtio register window.
pub const VIRTIO_BASE: u64 = 0xd000_0000;
/// The size of each window, which is their distance too.
pub const VIRTIO_WINDOW_BYTES: u64 = vmm_virtio::mmio::WINDOW_BYTES;
/// The interrupt of the first virtio slot. The lower ones are those of a PC.
pub const VIRTIO_IRQ_BASE: u32 = 5;

/// The I/O APIC, and where it is for every PC.
pub const IO_APIC: u32 = 0xfec0_0000;
/// Pins of KVM's I/O APIC.
pub const IO_APIC_PINS: u32 = 24;
/// The local APICs.
pub const LOCAL_APIC: u32 = 0xfee0_0000;
/// Pages KVM needs for itself on some processors: one, below the three of the TSS.
pub const IDENTITY_MAP: u64 = 0xfffb_c000;
/// Three pages for the same purpose.
pub const TSS: usize = 0xfffb_d000;

/// The first port of the serial console.
pub const SERIAL_PORT: u16 = 0x3f8;
/// Its number of ports.
pub const SERIAL_PORTS: u16 = 8;
/// Keyboard controller, command port: how a PC is reset.
pub const I8042_COMMAND_PORT: u16 = 0x64;
/// One byte written here powers off or marks a milestone.
pub const POWER_PORT: u16 = 0x600;

/// The number of virtio slots. Fixed, so that every machine looks the same to a saved guest.
pub const SLOTS: usize = 5;

/// A place for one virtio device: a register window and an interrupt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Slot {
    /// Stream sockets.
    Vsock = 0,
    /// The shared directory.
    Fs = 1,
    /// The log.
    Console = 2,
    /// Entropy.
    Rng = 3,
    /// Memory that comes and goes.
    Mem = 4,
}

impl Slot {
    /// All slots, in order.
    pub const ALL: [Self; SLOTS] = [Self::Vsock, Self::Fs, Self::Console, Self::Rng, Self::Mem];

    /// Where its registers are.
    #[must_use]
    pub const fn address(self) -> u64 {
        VIRTIO_BASE + self as u64 * VIRTIO_WINDOW_BYTES
    }

    /// Its interrupt.
    #[must_use]
    pub const fn irq(self) -> u32 {
        VIRTIO_IRQ_BASE + self as u32
    }

    /// The slot whose window holds `address`, and the offset in it.
    #[must_use]
    pub fn at(address: u64) -> Option<(Self, u64)> {
        let distance = address.checked_sub(VIRTIO_BASE)?;
        let index = usize::try_from(distance / VIRTIO_WINDOW_BYTES).ok()?;
        Some((*Self::ALL.get(index)?, distance % VIRTIO_WINDOW_BYTES))
    }
}

/// The RAM of a machine, as ranges of guest addresses `(start, length)`: one below the device gap, one above it if there is more.
#[must_use]
pub fn ram(bytes: u64) -> Vec<(u64, u64)> {
    let low = bytes.min(MMIO_GAP);
    let mut ranges = vec![(0, low)];
    if bytes > low {
        ranges.push((MMIO_GAP_END, bytes - low));
    }
    ranges
}

/// The region for `more` bytes of memory beyond `bytes` of RAM, as guest addresses. It lies above all RAM and above the device gap.
#[must_use]
pub fn region(bytes: u64, more: u64) -> Range<u64> {
    let ram_end = bytes.max(MMIO_GAP) - MMIO_GAP + MMIO_GAP_END;
    let start = ram_end.next_multiple_of(REGION_ALIGNMENT_BYTES);
    start..start + more
}

const _: () = {
    assert!(GDT + 32 < ZERO_PAGE);
    assert!(ZERO_PAGE + PAGE_BYTES <= BOOT_STACK);
    assert!(BOOT_STACK < PAGE_TABLES && PAGE_TABLES.is_multiple_of(PAGE_BYTES));
    assert!(PAGE_BYTES == PAGE as u64);
    assert!(PAGE_TABLES + (PAGE_TABLE_PAGES * PAGE) as u64 <= CMDLINE);
    assert!(CMDLINE + CMDLINE_MAX_BYTES as u64 <= LOW_RAM_END);
    assert!(LOW_RAM_END < MP_TABLE && MP_TABLE < MP_TABLE_END && MP_TABLE_END <= HIGH_RAM);
    assert!(MMIO_GAP <= VIRTIO_BASE);
    assert!(VIRTIO_BASE + SLOTS as u64 * VIRTIO_WINDOW_BYTES <= IO_APIC as u64);
    assert!(Slot::Mem.irq() < IO_APIC_PINS);
    assert!(REGION_ALIGNMENT_BYTES.is_multiple_of(mem::BLOCK_BYTES));
    assert!(mem::BLOCK_BYTES == (vmm_api::MEMORY_BLOCK_MIB as u64) << 20);
    assert!(IDENTITY_MAP + PAGE_BYTES == TSS as u64);
    assert!(TSS as u64 + 3 * PAGE_BYTES <= MMIO_GAP_END);
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_found_by_address() {
        for slot in Slot::ALL {
            assert_eq!(Slot::at(slot.address() + 0x50), Some((slot, 0x50)));
        }
        assert_eq!(Slot::at(VIRTIO_BASE - 1), None);
        assert_eq!(Slot::at(VIRTIO_BASE + SLOTS as u64 * PAGE_BYTES), None);
    }

    #[test]
    fn region_lies_above_ram_and_devices() {
        let gib = |count: u64| count << 30;
        assert_eq!(region(gib(1), gib(1)), gib(4)..gib(5));
        assert_eq!(region(gib(3), gib(1)), gib(4)..gib(5));
        assert_eq!(region(gib(4), gib(2)), gib(6)..gib(8));
        assert_eq!(region(gib(8) + 1, gib(2)), gib(10)..gib(12));
    }

    #[test]
    fn ram_leaves_the_device_gap_free() {
        assert_eq!(ram(256 << 20), [(0, 256 << 20)]);
        assert_eq!(ram(MMIO_GAP), [(0, MMIO_GAP)]);
        assert_eq!(ram(5 << 30), [(0, MMIO_GAP), (MMIO_GAP_END, 2 << 30)]);
    }
}
