//! A guest kernel that means harm: it takes the place of Linux in a VM, drives the devices by itself, and breaks every rule it can.
//!
//! ```text
//!   start (assembly) ─► begin ─► own page tables ─► orders, the initrd's text ─► attacks, one after another ─► the end
//! ```
//!
//! The initrd is an archive of one file, `/init`, and that is a text: names of [`ATTACKS`] separated by white space. Each attack logs a line on the serial port when it begins and one when it is
//! done, with what it tried and how much of that came out *wrong*, that is, in a way that only a faulty VMM lets happen. A case reads these lines; what
//! the attack does to the host is for the case to find out.
//!
//! Nothing here waits for ever but the attacks that are meant to: an answer that does not come is given up after [`cpu::PATIENCE`] looks. There is no
//! interrupt, no heap and no second stack but that of the second vCPU. A fault of any kind is a triple fault, which resets the machine.

#![no_std]
#![no_main]
#![deny(unsafe_code, unsafe_op_in_unsafe_fn)]

mod chains;
#[expect(unsafe_code, reason = "ports, registers and physical memory")]
mod cpu;
mod dialogue;
mod ends;
mod escapes;
mod files;
mod floods;
mod levels;
mod log;
mod packets;
mod plugging;
mod races;
mod registers;
mod rings;
mod share;
mod socket;
#[expect(unsafe_code, reason = "the first instructions are no compiler's")]
mod start;
mod transport;

use core::str;

use log::{Report, say};

/// What an attack does.
type Attack = fn(&mut Report);

/// Every attack by its name in the orders.
const ATTACKS: &[(&str, Attack)] = &[
    ("rings", rings::layouts),
    ("indices", rings::indices),
    ("chains", chains::direct),
    ("indirect", chains::indirect),
    ("registers", registers::in_every_state),
    ("configuration", registers::configuration),
    ("relaid", registers::queues_while_running),
    ("kicks", floods::kicks),
    ("resets", races::resets),
    ("fed", races::fed_while_reset),
    ("levels", levels::all),
    ("names", files::names),
    ("messages", files::messages),
    ("handles", files::handles),
    ("ranges", files::ranges),
    ("links", escapes::links),
    ("nodes", escapes::nodes),
    ("descriptors", files::descriptors),
    ("syncs", files::syncs),
    ("packets", packets::malformed),
    ("ports", packets::ports),
    ("credit", packets::credit),
    ("storm", packets::storm),
    ("dials", packets::dials),
    ("dials-for-ever", packets::dials_for_ever),
    ("agent", dialogue::replies),
    ("orders", plugging::out_of_range),
    ("plugging", plugging::alternate),
    ("unplugged", plugging::touch_unplugged),
    ("unplugged-ring", plugging::ring_in_unplugged),
    ("serial", floods::serial),
    ("console", floods::console),
    ("marks", floods::marks),
    ("nowhere", ends::nowhere),
    ("reset", ends::reset),
    ("power-off", ends::power_off),
    ("triple-fault", ends::triple_fault),
    ("halt", ends::halt),
    ("spin", ends::spin),
];

/// The longest archive with orders.
const ORDERS_MAX: usize = 4096;

/// The contents of the archive's first file, as far as they are there: a header (format "newc") of 110 bytes, `init` and a NUL, padded to four.
fn first_file(archive: &[u8]) -> &[u8] {
    const SIZE: core::ops::Range<usize> = 54..62;
    const CONTENTS: usize = 116;
    let size = archive.get(SIZE).and_then(|size| str::from_utf8(size).ok());
    let size = size.and_then(|size| usize::from_str_radix(size, 16).ok());
    let end = CONTENTS + size.unwrap_or(0);
    archive.get(CONTENTS..end).unwrap_or_default()
}

/// Entered from the assembly with the address of the zero page.
fn begin(zero_page: u64) -> ! {
    cpu::map_all();
    let mut text = [0; ORDERS_MAX];
    let orders = first_file(cpu::initrd(zero_page, &mut text));
    let mut wrong = 0;
    for name in str::from_utf8(orders)
        .unwrap_or_default()
        .split_ascii_whitespace()
    {
        let Some((_, attack)) = ATTACKS.iter().find(|(known, _)| *known == name) else {
            say!("{name}: no such attack");
            wrong += 1;
            continue;
        };
        say!("{name}: begins");
        let mut report = Report::new(name);
        attack(&mut report);
        say!("{name}: {} tried, {} wrong", report.tried, report.wrong);
        wrong += report.wrong;
    }
    say!("all done, {wrong} wrong");
    cpu::reset()
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    say!("the hostile guest is broken: {info}");
    cpu::reset()
}
