//! What the program says, on the serial port: each byte is an exit of the VM, so it says little.

use core::fmt;

use crate::cpu;

/// The serial port's data register.
const DATA: u16 = 0x3f8;
/// Lines of one attack about what is wrong: the first ones tell enough.
const LINES_MAX: u32 = 12;

/// The serial port.
pub(crate) struct Serial;

impl fmt::Write for Serial {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        text.bytes().for_each(|byte| cpu::out8(DATA, byte));
        Ok(())
    }
}

/// Says one line.
macro_rules! say {
    ($($words:tt)*) => {{
        use core::fmt::Write as _;
        // The serial port takes everything.
        let _ = writeln!($crate::log::Serial, "hostile: {}", format_args!($($words)*));
    }};
}
pub(crate) use say;

/// What came of an attack.
pub(crate) struct Report {
    name: &'static str,
    /// How much it tried.
    pub(crate) tried: u32,
    /// How much of that a VMM without fault would not have let happen.
    pub(crate) wrong: u32,
}

impl Report {
    /// Nothing yet.
    pub(crate) fn new(name: &str) -> Self {
        let known = crate::ATTACKS.iter().find(|(known, _)| *known == name);
        Self {
            name: known.map_or("", |(known, _)| known),
            tried: 0,
            wrong: 0,
        }
    }

    /// One thing more was tried.
    pub(crate) fn tried(&mut self) {
        self.tried += 1;
    }

    /// Something came out as it must not.
    pub(crate) fn wrong(&mut self, what: fmt::Arguments<'_>) {
        self.wrong += 1;
        if self.wrong <= LINES_MAX {
            say!("{}: WRONG: {what}", self.name);
        }
    }

    /// One thing more was tried, and this must hold.
    pub(crate) fn expect(&mut self, holds: bool, what: fmt::Arguments<'_>) {
        self.tried();
        if !holds {
            self.wrong(what);
        }
    }
}
