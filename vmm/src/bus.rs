//! Address → device, for the accesses a vCPU could not finish in the kernel.
//!
//! Memory: the register windows of the virtio slots. Ports: the UART, the power port and the keyboard controller's reset. Where nothing is,
//! reads give all ones and writes are lost, as on a PC, and nothing is logged: a guest can do both for ever.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vmm_virtio::mmio;

use crate::devices::{SharedTransport, lock};
use crate::layout::{SERIAL_PORT, SERIAL_PORTS, SLOTS, Slot};
use crate::log::{Lines, Log};
use crate::power::{self, Order};
use crate::serial::Serial;
use crate::starter::Starter;

/// All devices of a machine.
#[derive(Debug)]
pub struct Bus {
    slots: [Option<SharedTransport>; SLOTS],
    starter: Starter,
    serial: Mutex<Console>,
}

#[derive(Debug)]
struct Console {
    registers: Serial,
    output: Lines<Log>,
}

impl Bus {
    /// A bus with these devices, started and stopped by `starter`, and the UART writing to `log`.
    #[must_use]
    pub fn new(slots: [Option<SharedTransport>; SLOTS], starter: Starter, log: Log) -> Self {
        let serial = Mutex::new(Console {
            registers: Serial::default(),
            output: Lines::new(log),
        });
        Self {
            slots,
            starter,
            serial,
        }
    }

    /// A load from device memory.
    pub fn read_memory(&self, address: u64, data: &mut [u8]) {
        match self.transport(address) {
            Some((transport, offset)) => lock(transport).read(offset, data),
            None => data.fill(0xff),
        }
    }

    /// A store to device memory.
    pub fn write_memory(&self, address: u64, data: &[u8]) {
        let Some((transport, offset)) = self.transport(address) else {
            return;
        };
        if offset != mmio::STATUS {
            return lock(transport).write(offset, data);
        }
        // The one register that starts and stops a device.
        let (transport, data) = (Arc::clone(transport), data.to_vec());
        self.starter
            .run(move || lock(&transport).write(offset, &data));
    }

    /// An `in` instruction.
    pub fn read_port(&self, port: u16, data: &mut [u8]) {
        data.fill(0xff);
        if let (Some(register), [byte]) = (serial_register(port), data) {
            *byte = self.serial().registers.read(register);
        }
    }

    /// An `out` instruction; what the guest wants of its machine by it, if anything.
    pub fn write_port(&self, port: u16, data: &[u8]) -> Option<Order> {
        let [byte] = data else { return None };
        let Some(register) = serial_register(port) else {
            return power::order(port, *byte);
        };
        let mut serial = self.serial();
        if let Some(sent) = serial.registers.write(register, *byte) {
            // The log never fails: what it cannot write, it drops.
            let _logged = serial.output.push(sent);
        }
        None
    }

    /// Writes out what the UART has of a line.
    pub fn flush_log(&self) {
        // As in `write_port`.
        let _logged = self.serial().output.flush();
    }

    fn transport(&self, address: u64) -> Option<(&SharedTransport, u64)> {
        let (slot, offset) = Slot::at(address)?;
        Some((self.slots.get(slot as usize)?.as_ref()?, offset))
    }

    /// A panic ends the process, so the lock is never seen poisoned.
    fn serial(&self) -> MutexGuard<'_, Console> {
        self.serial.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn serial_register(port: u16) -> Option<u16> {
    port.checked_sub(SERIAL_PORT)
        .filter(|register| *register < SERIAL_PORTS)
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Read, Seek};

    use vmm_virtio::Confine;

    use super::*;

    fn bus(file: &File) -> Bus {
        Bus::new(
            [const { None }; SLOTS],
            Starter::spawn(Confine::none()).unwrap(),
            Log::new(file.try_clone().unwrap().into()).unwrap(),
        )
    }

    #[test]
    fn nothing_reads_as_ones_and_swallows_writes() {
        let bus = bus(&tempfile::tempfile().unwrap());
        let mut data = [0; 4];
        bus.read_memory(Slot::Vsock.address(), &mut data);
        assert_eq!(data, [0xff; 4]);
        bus.write_memory(0xdead_0000, &[1]);
        let mut data = [0; 2];
        bus.read_port(0x60, &mut data);
        assert_eq!(data, [0xff; 2]);
        assert_eq!(bus.write_port(0x80, &[1]), None);
        assert_eq!(bus.write_port(crate::layout::POWER_PORT, &[1, 0]), None);
    }

    #[test]
    fn serial_output_reaches_the_log() {
        let mut file = tempfile::tempfile().unwrap();
        let bus = bus(&file);
        for byte in b"hello\n" {
            assert_eq!(bus.write_port(SERIAL_PORT, &[*byte]), None);
        }
        let mut text = String::new();
        file.rewind().unwrap();
        file.read_to_string(&mut text).unwrap();
        assert_eq!(text, "hello\n");
    }

    #[test]
    fn power_port_orders() {
        let bus = bus(&tempfile::tempfile().unwrap());
        assert_eq!(
            bus.write_port(crate::layout::POWER_PORT, &[1]),
            Some(Order::PowerOff)
        );
    }
}
