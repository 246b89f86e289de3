//! More of everything than anybody needs: kicks, log lines, marks.

use crate::cpu;
use crate::log::Report;
use crate::transport::{CONSOLE, Device, QUEUE_NOTIFY, SIZE, answer_of, queues};

/// Kicks of each queue.
const KICKS: u32 = 5_000;
/// Kicks of queues that are not there: each comes to the VMM's own thread.
const ABSENT_KICKS: u32 = 500;
/// Bytes sent one by one on the serial port, each an exit.
const SERIAL_BYTES: u32 = 30_000;
/// Bytes sent on the console device: far more than anybody keeps.
const CONSOLE_BYTES: u32 = 16 << 20;
/// Moments for whoever reads the console to come to its end.
const READING: u32 = 5_000;
/// Milestones marked.
const MARKS: u32 = 8_000;

/// Kicks on all queues of devices that run, that are in reset, and that are not there.
pub(crate) fn kicks(report: &mut Report) {
    for is_live in [false, true] {
        for device in Device::all() {
            device.reset();
            if is_live {
                device.bring_up(SIZE);
            }
            for queue in 0..queues(device.slot) {
                report.tried();
                (0..KICKS).for_each(|_| device.kick(queue));
            }
            for queue in [3, 17, 0xffff, 0x1_0000, u32::MAX] {
                report.tried();
                (0..ABSENT_KICKS / 5).for_each(|_| device.kick(queue));
            }
            // As wide as no kick is.
            for _ in 0..ABSENT_KICKS / 5 {
                cpu::write8(device.address(QUEUE_NOTIFY), 0);
                cpu::write16(device.address(QUEUE_NOTIFY), 0);
                cpu::write64(device.address(QUEUE_NOTIFY), 0);
            }
        }
    }
    for device in Device::all() {
        report.expect(
            device.works(),
            format_args!("device {} does not work after kicks", device.slot),
        );
    }
}

/// The serial port: a line without end, bytes of every value, lines of one byte.
pub(crate) fn serial(report: &mut Report) {
    const DATA: u16 = 0x3f8;
    for count in 0..SERIAL_BYTES {
        let byte = match count % 3 {
            0 => b'x',
            1 => (count / 3) as u8,
            _ if count > SERIAL_BYTES / 2 => b'\n',
            _ => 0x1b,
        };
        cpu::out8(DATA, byte);
    }
    for port in DATA..DATA + 8 {
        report.tried();
        for value in [0, 0x80, 0xff] {
            cpu::out8(port, value);
            cpu::out16(port, 0xffff);
            cpu::out32(port, u32::MAX);
            cpu::out_string(port, &[value; 4096]);
            cpu::in8(port);
            cpu::in32(port);
        }
    }
    // The latch is off again, and so the next line is seen.
    cpu::out8(DATA + 3, 0);
    cpu::out8(DATA, b'\n');
}

/// The console device: chains of the largest size, with escapes and without line ends.
pub(crate) fn console(report: &mut Report) {
    const CHAIN: u32 = 4096;
    let Some(device) = Device::at(CONSOLE) else {
        return report.wrong(format_args!("there is no console"));
    };
    let mut live = device.bring_up(SIZE);
    let at = answer_of(CONSOLE);
    cpu::fill(at, b'y', (CHAIN * 2).into());
    cpu::copy_in(at, b"\x1b[2J\x1b]0;pwned\x07\r\n\0\xff\xfe");
    let ring = &mut live.rings[1];
    for _ in 0..CONSOLE_BYTES / CHAIN {
        report.tried();
        while ring.out() >= SIZE {
            device.kick(1);
            if device.is_broken() {
                return report.wrong(format_args!("the console gave up"));
            }
        }
        let index = ring.next % SIZE;
        ring.offer_buffer(index, at, CHAIN * 2, 0);
    }
    device.kick(1);
    report.expect(
        device.works(),
        format_args!("the console does not work after it"),
    );
    // What a full pipe cannot take is lost: what is said next is to be heard.
    (0..READING).for_each(|_| cpu::relax());
}

/// The port that ends the machine and marks milestones: everything but the end.
pub(crate) fn marks(report: &mut Report) {
    const POWER: u16 = 0x600;
    const KEYBOARD_CONTROLLER: u16 = 0x64;
    for count in 0..MARKS {
        let value = count as u8;
        if value != 1 {
            cpu::out8(POWER, value);
        }
        if value != 0xfe && count < MARKS / 4 {
            cpu::out8(KEYBOARD_CONTROLLER, value);
        }
    }
    for value in [0x0101, 0xfefe, 0] {
        report.tried();
        cpu::out16(POWER, value);
        cpu::out32(POWER, value.into());
        cpu::out16(KEYBOARD_CONTROLLER, value);
        // By one instruction, which a processor may make single bytes of: so none of them is the end's.
        cpu::out_string(POWER, &[9; 512]);
        cpu::out_string(KEYBOARD_CONTROLLER, &[0xd1; 512]);
    }
    // Every port once; those of the end are known.
    for port in (0..=u16::MAX)
        .step_by(61)
        .filter(|port| ![POWER, KEYBOARD_CONTROLLER].contains(port))
    {
        report.tried();
        cpu::out8(port, 0xfe);
        cpu::in8(port);
    }
}
