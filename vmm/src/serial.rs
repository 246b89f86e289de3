//! A 16550 UART, the part a kernel's early console needs (pure): bytes out, always ready, no input, no interrupts.
//!
//! Registers as in the PC16550D data sheet, section 8: what is written to a latch reads back, so that a driver that probes finds a UART.

const DATA: u16 = 0;
const INTERRUPT_ENABLE: u16 = 1;
const INTERRUPT_IDENTITY: u16 = 2;
const LINE_CONTROL: u16 = 3;
const MODEM_CONTROL: u16 = 4;
const LINE_STATUS: u16 = 5;
const MODEM_STATUS: u16 = 6;
const SCRATCH: u16 = 7;

const DIVISOR_LATCH: u8 = 1 << 7;
const NO_INTERRUPT: u8 = 1;
const TRANSMITTER_EMPTY: u8 = 0b0110_0000;
const PEER_READY: u8 = 0b1011_0000;

/// The registers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Serial {
    divisor: [u8; 2],
    interrupt_enable: u8,
    line_control: u8,
    modem_control: u8,
    scratch: u8,
}

impl Serial {
    /// Reads register `offset`, 0 to 7.
    #[must_use]
    pub fn read(&self, offset: u16) -> u8 {
        match offset {
            DATA if self.is_latched() => self.divisor[0],
            INTERRUPT_ENABLE if self.is_latched() => self.divisor[1],
            INTERRUPT_ENABLE => self.interrupt_enable,
            INTERRUPT_IDENTITY => NO_INTERRUPT,
            LINE_CONTROL => self.line_control,
            MODEM_CONTROL => self.modem_control,
            LINE_STATUS => TRANSMITTER_EMPTY,
            MODEM_STATUS => PEER_READY,
            SCRATCH => self.scratch,
            _ => 0,
        }
    }

    /// Writes register `offset`; returns the byte if that transmits one.
    pub fn write(&mut self, offset: u16, value: u8) -> Option<u8> {
        match offset {
            DATA if self.is_latched() => self.divisor[0] = value,
            INTERRUPT_ENABLE if self.is_latched() => self.divisor[1] = value,
            DATA => return Some(value),
            INTERRUPT_ENABLE => self.interrupt_enable = value & 0x0f,
            LINE_CONTROL => self.line_control = value,
            MODEM_CONTROL => self.modem_control = value & 0x1f,
            SCRATCH => self.scratch = value,
            _ => {}
        }
        None
    }

    fn is_latched(&self) -> bool {
        self.line_control & DIVISOR_LATCH != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_is_transmitted_unless_the_divisor_is_set() {
        let mut serial = Serial::default();
        assert_eq!(serial.write(DATA, b'a'), Some(b'a'));
        serial.write(LINE_CONTROL, DIVISOR_LATCH);
        assert_eq!(serial.write(DATA, 1), None);
        assert_eq!(serial.read(DATA), 1);
        serial.write(LINE_CONTROL, 3);
        assert_eq!(serial.read(DATA), 0);
    }

    #[test]
    fn transmitter_is_always_ready() {
        assert_eq!(Serial::default().read(LINE_STATUS) & 0x60, 0x60);
    }
}
