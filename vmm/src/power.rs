//! The two ports by which a guest ends its machine or marks a milestone (pure).
//!
//! The power port takes one byte: 1 powers off, anything else is a mark on the timeline, 2 being the first thing PID 1 does. The keyboard
//! controller's command 0xfe is how a PC is reset.

use crate::layout::{I8042_COMMAND_PORT, POWER_PORT};

const POWER_OFF: u8 = 0x01;
const MARK_INIT: u8 = 0x02;
const PULSE_RESET: u8 = 0xfe;

/// What a guest wants by writing to a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Order {
    /// Power off.
    PowerOff,
    /// Reset.
    Reset,
    /// A milestone with this name.
    Mark(String),
}

/// What writing `value` to `port` means, if anything.
#[must_use]
pub fn order(port: u16, value: u8) -> Option<Order> {
    match (port, value) {
        (POWER_PORT, POWER_OFF) => Some(Order::PowerOff),
        (POWER_PORT, MARK_INIT) => Some(Order::Mark("init".to_owned())),
        (POWER_PORT, number) => Some(Order::Mark(number.to_string())),
        (I8042_COMMAND_PORT, PULSE_RESET) => Some(Order::Reset),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_order_the_end_and_marks() {
        assert_eq!(order(POWER_PORT, 1), Some(Order::PowerOff));
        assert_eq!(order(POWER_PORT, 2), Some(Order::Mark("init".to_owned())));
        assert_eq!(order(POWER_PORT, 9), Some(Order::Mark("9".to_owned())));
        assert_eq!(order(I8042_COMMAND_PORT, 0xfe), Some(Order::Reset));
        assert_eq!(order(I8042_COMMAND_PORT, 0xd1), None);
        assert_eq!(order(0x80, 1), None);
    }
}
