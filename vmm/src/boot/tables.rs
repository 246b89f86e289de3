//! The tables a kernel reads at boot, as bytes (pure): zero page, MP table, page tables, GDT.
//!
//! - Zero page: the kernel's `Documentation/arch/x86/zero-page.rst` and `boot.rst`. Only the fields that a 64-bit entry needs are set.
//! - MP table: Intel MultiProcessor Specification 1.4, chapter 4. Processors with their APIC ids, one ISA bus, one I/O APIC, and one interrupt
//!   entry per virtio slot; there is nothing else that interrupts.

use crate::layout::{
    CMDLINE, HIGH_RAM, IO_APIC, LOCAL_APIC, LOW_RAM_END, MMIO_GAP, MP_TABLE, MP_TABLE_END, PAGE,
    PAGE_BYTES, PAGE_TABLE_PAGES, PAGE_TABLES, Slot,
};

use super::kernel::Placed;

/// Selector of the code segment.
pub const CODE_SELECTOR: u16 = 0x10;
/// Selector of the data segments.
pub const DATA_SELECTOR: u16 = 0x18;

/// The zero page of a machine with these ranges of RAM `(start, length)`, and a command line of `cmdline_bytes` with its NUL.
#[must_use]
pub fn zero_page(ram: &[(u64, u64)], initrd: Placed, cmdline_bytes: usize) -> [u8; PAGE] {
    const E820_COUNT: usize = 0x1e8;
    const SETUP_SIGNATURE: usize = 0x1fe;
    const HEADER_MAGIC: usize = 0x202;
    const PROTOCOL: usize = 0x206;
    const LOADER: usize = 0x210;
    const LOAD_FLAGS: usize = 0x211;
    const INITRD_ADDRESS: usize = 0x218;
    const INITRD_BYTES: usize = 0x21c;
    const CMDLINE_POINTER: usize = 0x228;
    const CMDLINE_BYTES: usize = 0x238;
    const E820_TABLE: usize = 0x2d0;
    const E820_ENTRY_BYTES: usize = 20;
    const E820_RAM: u32 = 1;
    const LOADER_UNDEFINED: u8 = 0xff;
    const LOADED_HIGH: u8 = 1;

    let mut page = [0; PAGE];
    put(&mut page, SETUP_SIGNATURE, &0xaa55u16.to_le_bytes());
    put(&mut page, HEADER_MAGIC, b"HdrS");
    put(&mut page, PROTOCOL, &0x020fu16.to_le_bytes());
    put(&mut page, LOADER, &[LOADER_UNDEFINED]);
    put(&mut page, LOAD_FLAGS, &[LOADED_HIGH]);
    // The initrd lies below the device gap, and all sizes here are far below 4 GiB.
    put(
        &mut page,
        INITRD_ADDRESS,
        &initrd.address.to_le_bytes()[..4],
    );
    put(&mut page, INITRD_BYTES, &initrd.bytes.to_le_bytes()[..4]);
    put(&mut page, CMDLINE_POINTER, &CMDLINE.to_le_bytes()[..4]);
    put(&mut page, CMDLINE_BYTES, &cmdline_bytes.to_le_bytes()[..4]);

    let mut count = 0u8;
    for (start, length) in usable(ram) {
        let at = E820_TABLE + usize::from(count) * E820_ENTRY_BYTES;
        put(&mut page, at, &start.to_le_bytes());
        put(&mut page, at + 8, &length.to_le_bytes());
        put(&mut page, at + 16, &E820_RAM.to_le_bytes());
        count += 1;
    }
    put(&mut page, E820_COUNT, &[count]);
    page
}

/// RAM less the PC's hole between 640 KiB and 1 MiB.
fn usable(ram: &[(u64, u64)]) -> Vec<(u64, u64)> {
    let mut ranges = vec![(0, LOW_RAM_END)];
    for (start, length) in ram {
        if *start < HIGH_RAM {
            ranges.push((HIGH_RAM, (start + length).min(MMIO_GAP) - HIGH_RAM));
        } else {
            ranges.push((*start, *length));
        }
    }
    ranges
}

/// The MP floating pointer and the configuration table behind it, for [`MP_TABLE`].
#[must_use]
pub fn mp_table(cpus: u8) -> Vec<u8> {
    const SPECIFICATION_1_4: u8 = 4;
    const ISA_BUS: u8 = 0;
    const APIC_VERSION: u8 = 0x14;
    const TO_ALL_APICS: u8 = 0xff;
    const LINT_EXTINT: (u8, u8) = (3, 0);
    const LINT_NMI: (u8, u8) = (1, 1);

    let mut entries = Vec::new();
    let mut count = 0u16;
    let mut push = |entry: &[u8]| {
        entries.extend_from_slice(entry);
        count += 1;
    };
    for id in 0..cpus {
        push(&processor(id, APIC_VERSION));
    }
    push(&[1, ISA_BUS, b'I', b'S', b'A', b' ', b' ', b' ']);
    // Ids of I/O APICs and of processors come from one space.
    let io_apic = cpus;
    let mut entry = [2, io_apic, APIC_VERSION, 1, 0, 0, 0, 0];
    entry[4..].copy_from_slice(&IO_APIC.to_le_bytes());
    push(&entry);
    for slot in Slot::ALL {
        // Conforms to its bus: edge-triggered, active high. Pin and interrupt number are the same.
        let irq = slot.irq().to_le_bytes()[0];
        push(&[3, 0, 0, 0, ISA_BUS, irq, io_apic, irq]);
    }
    for (kind, pin) in [LINT_EXTINT, LINT_NMI] {
        push(&[4, kind, 0, 0, ISA_BUS, 0, TO_ALL_APICS, pin]);
    }

    let mut table = floating_pointer(SPECIFICATION_1_4).to_vec();
    table.extend_from_slice(&configuration_header(&entries, count, SPECIFICATION_1_4));
    table.extend_from_slice(&entries);
    table
}

const FLOATING_POINTER_BYTES: usize = 16;
const CONFIGURATION_HEADER_BYTES: usize = 44;
const PROCESSOR_BYTES: usize = 20;

// 255 processors and 32 other entries fit.
const _: () = assert!(
    (FLOATING_POINTER_BYTES + CONFIGURATION_HEADER_BYTES + 255 * PROCESSOR_BYTES + 32 * 8) as u64
        <= MP_TABLE_END - MP_TABLE
);

fn processor(id: u8, version: u8) -> [u8; PROCESSOR_BYTES] {
    const ENABLED: u8 = 1;
    const BOOT_PROCESSOR: u8 = 2;
    let mut entry = [0; PROCESSOR_BYTES];
    entry[1] = id;
    entry[2] = version;
    entry[3] = if id == 0 {
        ENABLED | BOOT_PROCESSOR
    } else {
        ENABLED
    };
    entry
}

fn floating_pointer(revision: u8) -> [u8; FLOATING_POINTER_BYTES] {
    let mut pointer = [0; FLOATING_POINTER_BYTES];
    pointer[..4].copy_from_slice(b"_MP_");
    let table = MP_TABLE + FLOATING_POINTER_BYTES as u64;
    pointer[4..8].copy_from_slice(&table.to_le_bytes()[..4]);
    pointer[8] = 1; // length in units of 16 bytes
    pointer[9] = revision;
    pointer[10] = checksum(&pointer);
    pointer
}

fn configuration_header(
    entries: &[u8],
    count: u16,
    revision: u8,
) -> [u8; CONFIGURATION_HEADER_BYTES] {
    let mut header = [0; CONFIGURATION_HEADER_BYTES];
    header[..4].copy_from_slice(b"PCMP");
    let bytes = header.len() + entries.len();
    header[4..6].copy_from_slice(&bytes.to_le_bytes()[..2]);
    header[6] = revision;
    header[8..16].copy_from_slice(b"HUSK    ");
    header[16..28].copy_from_slice(b"HUSK        ");
    header[34..36].copy_from_slice(&count.to_le_bytes());
    header[36..40].copy_from_slice(&LOCAL_APIC.to_le_bytes());
    header[7] = checksum(&header).wrapping_add(checksum(entries));
    header
}

/// What makes the sum of all bytes 0.
fn checksum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0u8, |sum, byte| sum.wrapping_sub(*byte))
}

/// Page tables that map the first GiB onto itself with 2 MiB pages.
#[must_use]
pub fn page_tables() -> Vec<u8> {
    const PRESENT_WRITABLE: u64 = 0b11;
    const HUGE: u64 = 1 << 7;
    let mut tables = vec![0; PAGE * PAGE_TABLE_PAGES];
    put(
        &mut tables,
        0,
        &((PAGE_TABLES + PAGE_BYTES) | PRESENT_WRITABLE).to_le_bytes(),
    );
    put(
        &mut tables,
        PAGE,
        &((PAGE_TABLES + 2 * PAGE_BYTES) | PRESENT_WRITABLE).to_le_bytes(),
    );
    let directory = tables.iter_mut().skip(2 * PAGE);
    let entries =
        (0..512u64).flat_map(|index| ((index << 21) | PRESENT_WRITABLE | HUGE).to_le_bytes());
    for (to, from) in directory.zip(entries) {
        *to = from;
    }
    tables
}

/// Segment descriptors: two unused, flat 64-bit code, flat data.
#[must_use]
pub fn gdt() -> [u8; 32] {
    const CODE: u64 = 0x00af_9b00_0000_ffff;
    const DATA: u64 = 0x00cf_9300_0000_ffff;
    let mut table = [0; 32];
    put(&mut table, usize::from(CODE_SELECTOR), &CODE.to_le_bytes());
    put(&mut table, usize::from(DATA_SELECTOR), &DATA.to_le_bytes());
    table
}

fn put(to: &mut [u8], at: usize, bytes: &[u8]) {
    for (to, from) in to.iter_mut().skip(at).zip(bytes) {
        *to = *from;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mp_table_sums_to_zero_and_lists_every_vcpu() {
        for cpus in [1, 2, 64, 255] {
            let table = mp_table(cpus);
            let sum = |bytes: &[u8]| bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
            assert_eq!(sum(&table[..16]), 0);
            assert_eq!(sum(&table[16..]), 0);
            let length = u16::from_le_bytes([table[20], table[21]]);
            assert_eq!(usize::from(length), table.len() - 16);
            let processors: Vec<u8> = (0..usize::from(cpus))
                .map(|i| table[60 + i * 20 + 1])
                .collect();
            assert_eq!(processors, (0..cpus).collect::<Vec<u8>>());
            assert_eq!(table[60 + usize::from(cpus) * 20], 1);
        }
    }

    #[test]
    fn zero_page_tells_ram_without_holes() {
        let page = zero_page(
            &[(0, 0xc000_0000), (0x1_0000_0000, 0x1000_0000)],
            Placed {
                address: 0x800_0000,
                bytes: 77,
            },
            10,
        );
        assert_eq!(page[0x1e8], 3);
        let entry = |index: usize| {
            let at = 0x2d0 + index * 20;
            let value = |at: usize| u64::from_le_bytes(page[at..at + 8].try_into().unwrap());
            (value(at), value(at + 8), page[at + 16])
        };
        assert_eq!(entry(0), (0, 0x9_fc00, 1));
        assert_eq!(entry(1), (0x10_0000, 0xbff0_0000, 1));
        assert_eq!(entry(2), (0x1_0000_0000, 0x1000_0000, 1));
        assert_eq!(page[0x218..0x220], [0, 0, 0, 8, 77, 0, 0, 0]);
    }

    #[test]
    fn page_tables_map_the_first_gib_onto_itself() {
        let tables = page_tables();
        let entry = |at: usize| u64::from_le_bytes(tables[at..at + 8].try_into().unwrap());
        assert_eq!(entry(0), 0xa003);
        assert_eq!(entry(4096), 0xb003);
        assert_eq!(entry(8192), 0x83);
        assert_eq!(entry(8192 + 511 * 8), 0x3fe0_0083);
    }
}
