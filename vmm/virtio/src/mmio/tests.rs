//! The register machine as a driver sees it, with a device that does as little as a device can.

use super::*;
use crate::testing::{FakeDriver, RING_SIZE};
use crate::{Stopped, Traits};

const LIVE: u32 = ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK;

/// Remembers what it was started with.
#[derive(Debug, Default)]
struct Idle {
    queues: Option<Vec<Option<QueueState>>>,
    config: [u8; 4],
}

impl Device for Idle {
    fn traits(&self) -> Traits {
        Traits {
            id: 42,
            features: 1 << 3,
            queue_sizes: &[64, 32],
        }
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        crate::device::read_config_bytes(&self.config, offset, data);
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        if let (0, Ok(config)) = (offset, data.try_into()) {
            self.config = config;
        }
    }

    fn start(&mut self, resources: Resources) -> Result<(), StartError> {
        let queues = resources.queues.iter();
        self.queues = Some(
            queues
                .map(|queue| queue.as_ref().map(Queue::state))
                .collect(),
        );
        Ok(())
    }

    fn stop(&mut self) -> Option<Stopped> {
        let queues = self.queues.take()?;
        Some(Stopped {
            queues,
            saved: SavedDevice::Fresh,
        })
    }
}

fn driver() -> FakeDriver {
    FakeDriver::new(Box::new(Idle::default()))
}

#[test]
fn identity_is_that_of_a_modern_device() {
    let driver = driver();
    assert_eq!(driver.read(0x000), 0x7472_6976);
    assert_eq!(driver.read(0x004), 2);
    assert_eq!(driver.read(0x008), 42);
}

#[test]
fn a_device_comes_up_step_by_step() {
    let mut driver = driver();
    assert_eq!(driver.status(), 0);
    driver.bring_up();
    assert_eq!(driver.status(), LIVE);
}

#[test]
fn features_nobody_offered_are_refused() {
    let mut driver = driver();
    driver.write(0x070, ACKNOWLEDGE | DRIVER);
    driver.write(0x024, 0);
    driver.write(0x020, 1 << 4);
    driver.write(0x024, 1);
    driver.write(0x020, 1);
    driver.write(0x070, ACKNOWLEDGE | DRIVER | FEATURES_OK);
    assert_eq!(driver.status(), ACKNOWLEDGE | DRIVER);
}

#[test]
fn a_legacy_driver_is_refused() {
    let mut driver = driver();
    driver.write(0x070, ACKNOWLEDGE | DRIVER);
    driver.write(0x070, ACKNOWLEDGE | DRIVER | FEATURES_OK);
    assert_eq!(driver.status() & FEATURES_OK, 0);
}

#[test]
fn a_driver_is_not_ready_before_its_features_are() {
    let mut driver = driver();
    driver.write(0x070, ACKNOWLEDGE | DRIVER | DRIVER_OK);
    assert_eq!(driver.status() & DRIVER_OK, 0);
}

#[test]
fn features_cannot_change_once_agreed() {
    let mut driver = driver();
    driver.negotiate();
    driver.write(0x024, 0);
    driver.write(0x020, 0);
    driver.bring_up();
    assert_ne!(driver.transport.registers.features & FEATURE_EVENT_INDEX, 0);
}

#[test]
fn queues_have_the_sizes_of_the_device() {
    let mut driver = driver();
    driver.write(0x030, 0);
    assert_eq!(driver.read(0x034), 64);
    driver.write(0x030, 1);
    assert_eq!(driver.read(0x034), 32);
    driver.write(0x030, 2);
    assert_eq!(driver.read(0x034), 0);
    driver.write(0x030, u32::MAX);
    assert_eq!(driver.read(0x034), 0);
}

#[test]
fn a_live_queue_cannot_be_moved() {
    let mut driver = driver();
    driver.bring_up();
    driver.write(0x030, 0);
    driver.write(0x080, 0xdead_0000);
    driver.write(0x044, 0);
    assert_eq!(driver.read(0x044), 1);
    assert_eq!(driver.transport.registers.queues[0].state.descriptors, 0);
}

#[test]
fn a_queue_outside_memory_needs_a_reset() {
    let mut driver = driver();
    driver.negotiate();
    driver.write(0x030, 0);
    driver.write(0x038, u32::from(RING_SIZE));
    driver.write(0x084, 0x7fff_ffff);
    driver.write(0x044, 1);
    driver.write(0x070, LIVE);
    assert_eq!(driver.status(), LIVE | NEEDS_RESET);
    driver.reset();
    assert_eq!(driver.status(), 0);
    driver.bring_up();
    assert_eq!(driver.status(), LIVE);
}

#[test]
fn a_queue_of_an_odd_size_needs_a_reset() {
    let mut driver = driver();
    driver.negotiate();
    driver.write(0x030, 0);
    driver.write(0x038, 3);
    driver.write(0x044, 1);
    driver.write(0x070, LIVE);
    assert_eq!(driver.status(), LIVE | NEEDS_RESET);
}

#[test]
fn a_queue_left_out_is_absent() {
    let mut driver = driver();
    driver.negotiate();
    driver.write(0x070, LIVE);
    assert_eq!(driver.status(), LIVE);
    let stopped = driver.transport.device.stop().unwrap();
    assert_eq!(stopped.queues, [None, None]);
}

#[test]
fn a_reset_forgets_everything() {
    let mut driver = driver();
    driver.bring_up();
    driver.reset();
    driver.write(0x030, 0);
    assert_eq!(
        (driver.status(), driver.read(0x044), driver.read(0x060)),
        (0, 0, 0)
    );
    assert!(driver.transport.device.stop().is_none());
}

#[test]
fn interrupts_are_acknowledged_bit_by_bit() {
    let mut driver = driver();
    driver.transport.irq.used_buffer().unwrap();
    driver.transport.irq.configuration().unwrap();
    assert_eq!(driver.read(0x060), 3);
    driver.write(0x064, 1);
    assert_eq!(driver.read(0x060), 2);
    assert!(driver.transport.irq().line().clear().unwrap());
}

#[test]
fn accesses_of_odd_width_do_nothing() {
    let mut driver = driver();
    driver.transport.write(0x070, &[1]);
    driver.transport.write(0x070, &[1, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(driver.status(), 0);
    let mut byte = [0xaa];
    driver.transport.read(0x000, &mut byte);
    assert_eq!(byte, [0]);
}

#[test]
fn configuration_is_written_by_a_driver_only() {
    let mut driver = driver();
    driver.write(0x100, 7);
    assert_eq!(driver.read(0x100), 0);
    driver.write(0x070, ACKNOWLEDGE | DRIVER);
    driver.write(0x100, 7);
    assert_eq!(driver.read(0x100), 7);
    assert_eq!(driver.read(0x200), 0);
}

#[test]
fn a_kick_of_no_queue_is_ignored() {
    let mut driver = driver();
    driver.bring_up();
    driver.write(QUEUE_NOTIFY, 1);
    driver.write(QUEUE_NOTIFY, u32::MAX);
    assert!(driver.transport.kicks()[1].clear().unwrap());
    assert!(!driver.transport.kicks()[0].clear().unwrap());
}

#[test]
fn a_pause_of_an_idle_device_changes_nothing() {
    let mut driver = driver();
    driver.transport.pause();
    driver.transport.resume();
    driver.bring_up();
    driver.transport.pause();
    assert!(driver.transport.device.stop().is_none());
    driver.transport.resume();
    assert_eq!(driver.status(), LIVE);
    assert!(driver.transport.device.stop().is_some());
}

#[test]
fn a_device_that_gives_up_says_so() {
    let mut driver = FakeDriver::new(Box::new(crate::rng::Rng::default()));
    driver.bring_up();
    driver.lie_about_available(0, RING_SIZE + 1);
    driver.wait_needs_reset();
    driver.reset();
    driver.bring_up();
    assert_eq!(driver.exchange(0, &[], 4).len(), 4);
}
