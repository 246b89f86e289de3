//! Two vCPUs against one device: one feeds it, the other takes it away.

use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering};

use crate::cpu;
use crate::log::{Report, say};
use crate::transport::{Descriptor, Device, MEM, RNG, Ring, SIZE, WRITE, answer_of, request_queue};

/// Resets of each device.
const RESETS: u32 = 150;

/// The slot that the second vCPU is at.
static SLOT: AtomicU8 = AtomicU8::new(RNG);
static IS_ON: AtomicBool = AtomicBool::new(false);
/// The second vCPU has nothing to do.
static IS_IDLE: AtomicBool = AtomicBool::new(false);
static FED: AtomicU32 = AtomicU32::new(0);

/// Whether the second vCPU is to do nothing; it takes a moment for that.
fn is_idle() -> bool {
    let is_on = IS_ON.load(Ordering::SeqCst);
    IS_IDLE.store(!is_on, Ordering::SeqCst);
    if !is_on {
        cpu::relax();
    }
    !is_on
}

/// The second vCPU's part: the ring is filled up to the brim without end, and kicked.
fn feed() {
    if is_idle() {
        return;
    }
    let slot = SLOT.load(Ordering::SeqCst);
    let queue = request_queue(slot);
    let ring = Ring::new(crate::transport::Layout::honest(slot, queue as u32, SIZE));
    let chain = Descriptor {
        address: answer_of(slot),
        length: 24,
        flags: if slot == RNG { WRITE } else { 0 },
        next: 0,
    };
    for index in 0..SIZE {
        ring.describe(index, chain);
        cpu::write16(ring.layout.available + 4 + u64::from(index) * 2, index);
    }
    for _ in 0..64 {
        ring.publish(ring.used_index().wrapping_add(SIZE));
        Device { slot }.kick(queue as u32);
    }
    FED.fetch_add(64, Ordering::SeqCst);
}

/// The second vCPU's part: it resets and starts the device as well.
fn start_as_well() {
    if is_idle() {
        return;
    }
    let device = Device {
        slot: SLOT.load(Ordering::SeqCst),
    };
    device.bring_up(SIZE);
    feed();
}

fn race(report: &mut Report, work: fn()) {
    if !cpu::start_second(work) {
        return report.wrong(format_args!("the second vCPU does not start"));
    }
    for device in Device::all() {
        SLOT.store(device.slot, Ordering::SeqCst);
        IS_ON.store(true, Ordering::SeqCst);
        for _ in 0..RESETS {
            report.tried();
            let live = device.bring_up(SIZE);
            live.rings[0].publish(SIZE);
            device.kick(0);
            device.reset();
        }
        let fed = FED.swap(0, Ordering::SeqCst);
        IS_ON.store(false, Ordering::SeqCst);
        say!(
            "device {}: fed {fed} times while it was reset {RESETS} times",
            device.slot
        );
        // The other one finishes its turn.
        IS_IDLE.store(false, Ordering::SeqCst);
        let idle = cpu::wait(|| IS_IDLE.load(Ordering::SeqCst).then_some(()));
        report.expect(idle.is_some(), format_args!("the second vCPU hangs"));
        report.expect(
            device.works(),
            format_args!("device {} does not work after that", device.slot),
        );
    }
}

/// One vCPU resets and starts a device, the other one does the same, and feeds it.
pub(crate) fn resets(report: &mut Report) {
    race(report, start_as_well);
}

/// The memory device is fed without end by one vCPU while the other one resets it, for ever.
pub(crate) fn fed_while_reset(report: &mut Report) {
    let slot = if Device::at(MEM).is_some() { MEM } else { RNG };
    SLOT.store(slot, Ordering::SeqCst);
    if !cpu::start_second(feed) {
        return report.wrong(format_args!("the second vCPU does not start"));
    }
    IS_ON.store(true, Ordering::SeqCst);
    say!("device {slot} is fed");
    loop {
        Device { slot }.bring_up(SIZE);
        (0..20).for_each(|_| cpu::relax());
        Device { slot }.reset();
    }
}
