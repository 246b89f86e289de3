//! What a guest kernel must find in memory and registers: Linux's 64-bit boot protocol (the kernel's `Documentation/arch/x86/boot.rst`,
//! "64-bit Boot Protocol"), entered at the ELF entry point of an uncompressed `vmlinux`.
//!
//! In memory: the kernel's segments where they are linked to run, the initrd at the top of low RAM, the command line, the zero page that
//! points to both, an MP table that names processors and interrupts, and page tables that map the first GiB onto itself. In registers: long
//! mode, flat segments, `rsi` pointing to the zero page ([`crate::vcpu`] sets them).

/// The kernel command line.
pub mod cmdline;
/// The kernel's segments and the initrd.
pub mod kernel;
/// The zero page, the MP table, page tables and the GDT.
pub mod tables;

use vmm_virtio::GuestMemory;

use crate::layout::{CMDLINE, GDT, MP_TABLE, PAGE_TABLES, ZERO_PAGE, ram};
use crate::memory::{self, MemoryError};

/// Writes everything but kernel and initrd into guest memory.
pub fn write_tables(
    memory: &GuestMemory,
    memory_bytes: u64,
    cpus: u8,
    initrd: kernel::Placed,
    cmdline: &str,
) -> Result<(), MemoryError> {
    let mut text = cmdline.as_bytes().to_vec();
    text.push(0);
    memory::write(memory, CMDLINE, &text)?;
    let zero_page = tables::zero_page(&ram(memory_bytes), initrd, text.len());
    memory::write(memory, ZERO_PAGE, &zero_page)?;
    memory::write(memory, MP_TABLE, &tables::mp_table(cpus))?;
    memory::write(memory, PAGE_TABLES, &tables::page_tables())?;
    memory::write(memory, GDT, &tables::gdt())
}
