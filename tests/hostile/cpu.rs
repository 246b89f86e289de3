//! The processor and the machine's addresses: with `start`, the one place with unsafe code and assembly.
//!
//! Physical memory is mapped onto itself. The program's own image is one piece of it, known to Rust; [`place`] refuses addresses in it, so that
//! nothing done to memory by address, here or by a device that was told of it, touches a Rust object.

use core::arch::asm;
use core::ptr;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// How often something that is about to happen is looked at before it is given up.
pub(crate) const PATIENCE: u32 = 10_000_000;
/// Looks between two exits of the VM, which give the device's thread the processor where there is but one.
pub(crate) const LOOKS_PER_EXIT: u32 = 32;

/// Memory of the guest's that is mapped: more than any case gives it.
const MAPPED_GIB: usize = 16;
/// Bytes of a huge page.
const HUGE: u64 = 2 << 20;

const POWER: u16 = 0x600;
const KEYBOARD_CONTROLLER: u16 = 0x64;
const LINE_STATUS: u16 = 0x3fd;

const LOCAL_APIC: u64 = 0xfee0_0000;
/// Where the second vCPU begins, in real mode: free low memory.
pub(crate) const TRAMPOLINE: u64 = 0x3_0000;

unsafe extern "C" {
    static image_start: u8;
    static image_end: u8;
    static trampoline_start: u8;
    static trampoline_end: u8;
    static trampoline_tables: u8;
    static trampoline_stack: u8;
    static trampoline_entry: u8;
    static second_stack_top: u8;
}

/// The boot processor comes here with a stack.
pub(crate) extern "C" fn enter(zero_page: u64) -> ! {
    crate::begin(zero_page)
}

/// Page tables: the root, the one below it, and a page of huge pages per GiB.
#[repr(C, align(4096))]
struct Tables([[AtomicU64; 512]; MAPPED_GIB + 2]);

static TABLES: Tables = Tables([const { [const { AtomicU64::new(0) }; 512] }; MAPPED_GIB + 2]);

// === Addresses ===

/// Maps the first [`MAPPED_GIB`] onto themselves, devices and what is nowhere included.
pub(crate) fn map_all() {
    const PRESENT_WRITABLE: u64 = 0b11;
    const LARGE: u64 = 1 << 7;
    let [root, directories, pages @ ..] = &TABLES.0;
    let table = |table: &[AtomicU64; 512]| ptr::from_ref(table).addr() as u64 | PRESENT_WRITABLE;
    root[0].store(table(directories), Ordering::Relaxed);
    let mut address = 0;
    for (entry, page) in directories.iter().zip(pages) {
        entry.store(table(page), Ordering::Relaxed);
        for entry in page {
            entry.store(address | PRESENT_WRITABLE | LARGE, Ordering::Relaxed);
            address += HUGE;
        }
    }
    let root = ptr::from_ref(root).addr();
    // SAFETY: the new tables map all that the old ones do, the same way.
    unsafe { asm!("mov cr3, {}", in(reg) root) };
}

/// A pointer to physical memory, anywhere but in the program's image.
fn place(address: u64, length: u64) -> *mut u8 {
    let (start, end) = (&raw const image_start, &raw const image_end);
    let end_address = address.saturating_add(length);
    assert!(
        address >= 0x1000 && (end_address <= start.addr() as u64 || address >= end.addr() as u64),
        "{address:#x} is the program's own"
    );
    ptr::with_exposed_provenance_mut(address as usize)
}

macro_rules! access {
    ($read:ident, $write:ident, $type:ty, $class:ident, $register:literal) => {
        /// Reads at a physical address, aligned or not, by one instruction.
        pub(crate) fn $read(address: u64) -> $type {
            let from = place(address, size_of::<$type>() as u64);
            let value: $type;
            // SAFETY: it is mapped, and no Rust object lies there.
            unsafe {
                asm!(
                    concat!("mov ", $register, ", [{from}]"),
                    value = out($class) value, from = in(reg) from,
                    options(nostack, preserves_flags)
                );
            }
            value
        }

        /// Writes at a physical address, aligned or not, by one instruction.
        pub(crate) fn $write(address: u64, value: $type) {
            let to = place(address, size_of::<$type>() as u64);
            // SAFETY: it is mapped, and no Rust object lies there.
            unsafe {
                asm!(
                    concat!("mov [{to}], ", $register),
                    value = in($class) value, to = in(reg) to,
                    options(nostack, preserves_flags)
                );
            }
        }
    };
}
access!(read8, write8, u8, reg_byte, "{value}");
access!(read16, write16, u16, reg, "{value:x}");
access!(read32, write32, u32, reg, "{value:e}");
access!(read64, write64, u64, reg, "{value:r}");

/// Copies bytes to physical memory.
pub(crate) fn copy_in(address: u64, bytes: &[u8]) {
    let to = place(address, bytes.len() as u64);
    // SAFETY: it is mapped, and no Rust object lies there.
    unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len()) };
}

/// Copies bytes from physical memory.
pub(crate) fn copy_out(address: u64, bytes: &mut [u8]) {
    let from = place(address, bytes.len() as u64);
    // SAFETY: it is mapped, and no Rust object lies there.
    unsafe { ptr::copy_nonoverlapping(from, bytes.as_mut_ptr(), bytes.len()) };
}

/// Fills physical memory.
pub(crate) fn fill(address: u64, byte: u8, length: u64) {
    let to = place(address, length);
    // SAFETY: it is mapped, and no Rust object lies there.
    unsafe { ptr::write_bytes(to, byte, length as usize) };
}

/// The initrd, as far as there is room for it.
pub(crate) fn initrd(zero_page: u64, room: &mut [u8]) -> &[u8] {
    let (address, length) = (read32(zero_page + 0x218), read32(zero_page + 0x21c));
    let text = &mut room[..(length as usize).min(crate::ORDERS_MAX)];
    copy_out(address.into(), text);
    text
}

/// Where RAM below the device gap ends: by the last entry of the zero page's map that lies there.
pub(crate) fn ram_end() -> u64 {
    const ZERO_PAGE: u64 = 0x7000;
    let count = u64::from(read8(ZERO_PAGE + 0x1e8));
    let entry = |index| ZERO_PAGE + 0x2d0 + index * 20;
    let ends = (0..count).map(|index| read64(entry(index)) + read64(entry(index) + 8));
    ends.filter(|end| *end <= 3 << 30).max().unwrap_or(0)
}

// === Ports ===

/// Writes a byte to a port.
pub(crate) fn out8(port: u16, value: u8) {
    // SAFETY: no port of this machine changes memory.
    unsafe {
        asm!("out dx, al", in("dx") port, in("al") value, options(nomem, nostack, preserves_flags))
    };
}

/// Writes two bytes to a port.
pub(crate) fn out16(port: u16, value: u16) {
    // SAFETY: no port of this machine changes memory.
    unsafe {
        asm!("out dx, ax", in("dx") port, in("ax") value, options(nomem, nostack, preserves_flags))
    };
}

/// Writes four bytes to a port.
pub(crate) fn out32(port: u16, value: u32) {
    // SAFETY: no port of this machine changes memory.
    unsafe {
        asm!("out dx, eax", in("dx") port, in("eax") value, options(nomem, nostack, preserves_flags))
    };
}

/// Writes bytes from memory to a port by one instruction.
pub(crate) fn out_string(port: u16, bytes: &[u8]) {
    let length = bytes.len();
    // SAFETY: it reads the slice; no port of this machine changes memory.
    unsafe {
        asm!(
            "rep outsb",
            in("dx") port, inout("rsi") bytes.as_ptr() => _, inout("rcx") length => _,
            options(readonly, nostack, preserves_flags)
        );
    }
}

/// Reads a byte from a port.
pub(crate) fn in8(port: u16) -> u8 {
    let value;
    // SAFETY: no port of this machine changes memory.
    unsafe {
        asm!("in al, dx", in("dx") port, out("al") value, options(nomem, nostack, preserves_flags))
    };
    value
}

/// Reads four bytes from a port.
pub(crate) fn in32(port: u16) -> u32 {
    let value;
    // SAFETY: no port of this machine changes memory.
    unsafe {
        asm!("in eax, dx", in("dx") port, out("eax") value, options(nomem, nostack, preserves_flags))
    };
    value
}

// === Waiting ===

/// Gives devices a moment.
pub(crate) fn relax() {
    in8(LINE_STATUS);
}

/// Looks until there is something, or [`PATIENCE`] ends.
pub(crate) fn wait<T>(look: impl FnMut() -> Option<T>) -> Option<T> {
    wait_for(PATIENCE, look)
}

/// The same with so many looks.
pub(crate) fn wait_for<T>(looks: u32, mut look: impl FnMut() -> Option<T>) -> Option<T> {
    for count in 0..looks {
        if let Some(found) = look() {
            return Some(found);
        }
        if count % LOOKS_PER_EXIT == 0 {
            relax();
        }
        core::hint::spin_loop();
    }
    None
}

// === The end ===

/// Stops this vCPU for ever.
pub(crate) fn halt() -> ! {
    loop {
        // SAFETY: interrupts are off, so it never comes back.
        unsafe { asm!("cli", "hlt", options(nomem, nostack)) };
    }
}

/// Resets the machine.
pub(crate) fn reset() -> ! {
    out8(KEYBOARD_CONTROLLER, 0xfe);
    halt()
}

/// Powers the machine off.
pub(crate) fn power_off() -> ! {
    out8(POWER, 1);
    halt()
}

/// Faults without anybody to take the fault.
pub(crate) fn triple_fault() -> ! {
    let nothing = [0u16; 5];
    // SAFETY: the machine ends here.
    unsafe { asm!("lidt [{}]", "int3", in(reg) &nothing) };
    halt()
}

// === The second vCPU ===

static WORK: AtomicU64 = AtomicU64::new(0);
static IS_UP: AtomicBool = AtomicBool::new(false);

/// Starts the second vCPU, which runs `work` for ever. False if it does not come.
pub(crate) fn start_second(work: fn()) -> bool {
    IS_UP.store(false, Ordering::SeqCst);
    WORK.store(work as usize as u64, Ordering::SeqCst);
    let (start, end) = (&raw const trampoline_start, &raw const trampoline_end);
    let length = end.addr() - start.addr();
    // SAFETY: the code between the two symbols.
    let code = unsafe { core::slice::from_raw_parts(start, length) };
    copy_in(TRAMPOLINE, code);
    let put = |symbol: *const u8, value: usize| {
        write64(
            TRAMPOLINE + (symbol.addr() - start.addr()) as u64,
            value as u64,
        );
    };
    put(&raw const trampoline_tables, ptr::from_ref(&TABLES).addr());
    put(
        &raw const trampoline_stack,
        (&raw const second_stack_top).addr(),
    );
    put(
        &raw const trampoline_entry,
        run_second as extern "C" fn() -> ! as usize,
    );
    let command = |value: u32| {
        const TO_OTHERS: u32 = 0b11 << 18;
        write32(LOCAL_APIC + 0x300, value | TO_OTHERS);
    };
    const ENABLED: u32 = 1 << 8 | 0xff;
    const INIT: u32 = 5 << 8 | 1 << 14;
    const START: u32 = 6 << 8 | 1 << 14;
    write32(LOCAL_APIC + 0xf0, ENABLED);
    command(INIT);
    (0..100).for_each(|_| relax());
    command(START | (TRAMPOLINE >> 12) as u32);
    wait(|| IS_UP.load(Ordering::SeqCst).then_some(())).is_some()
}

/// The second vCPU comes here with its stack.
extern "C" fn run_second() -> ! {
    IS_UP.store(true, Ordering::SeqCst);
    let work = WORK.load(Ordering::SeqCst) as usize as *const ();
    // SAFETY: a function of this type was stored.
    let work = unsafe { core::mem::transmute::<*const (), fn()>(work) };
    loop {
        work();
    }
}

// === Words ===

/// The bytes of words, as this processor has them: little endian.
pub(crate) fn bytes_of_words(words: &[u32]) -> &[u8] {
    // SAFETY: the bytes of the same slice.
    unsafe { core::slice::from_raw_parts(words.as_ptr().cast(), size_of_val(words)) }
}
