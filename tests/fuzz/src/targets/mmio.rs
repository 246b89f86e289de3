//! The register machine, beside a model of it written from the specification (virtio 1.2, sections
//! 3.1.1 and 4.2.2).
//!
//! Reads and writes of any offset and width, kicks, failures of the device, pause and resume, in
//! any order. Promised: status, features and queues are what the model says; a device is started
//! once per `DRIVER_OK`, with what the driver has laid out and both sides have agreed on, and is
//! never started while it is.

use std::sync::{Arc, Mutex};

use vmm_virtio::saved::SavedDevice;
use vmm_virtio::testing::FakeDriver;
use vmm_virtio::{Device, Queue, QueueState, Resources, StartError, Stopped, Traits};

use crate::input::Input;

const STEPS_MAX: usize = 256;
const FEATURES: u64 = 1 << 5 | 1 << 40;
/// Those of the transport: indirect descriptors, event index, version 1.
const OFFERED: u64 = FEATURES | 1 << 28 | 1 << 29 | VERSION_1;
const VERSION_1: u64 = 1 << 32;
const SIZES: &[u16] = &[64, 32, 16];

const DRIVER: u32 = 2;
const DRIVER_OK: u32 = 4;
const FEATURES_OK: u32 = 8;
const NEEDS_RESET: u32 = 64;
const SETTABLE: u32 = 0x8f;

/// Registers, so that an input finds them.
const OFFSETS: &[u64] = &[
    0x010, 0x014, 0x020, 0x024, 0x030, 0x034, 0x038, 0x044, 0x050, 0x060, 0x064, 0x070, 0x080,
    0x084, 0x090, 0x094, 0x0a0, 0x0a4, 0x0b0, 0x0fc, 0x100, 0x104,
];

/// A device that does nothing, and what has been done to it.
#[derive(Debug, Default)]
struct Seen {
    running: Option<Vec<Option<QueueState>>>,
    starts: usize,
    features: u64,
    saved: Option<SavedDevice>,
    refuses: bool,
    config: [u8; 8],
}

#[derive(Clone, Debug, Default)]
struct Idle(Arc<Mutex<Seen>>);

impl Device for Idle {
    fn traits(&self) -> Traits {
        Traits {
            id: 42,
            features: FEATURES,
            queue_sizes: SIZES,
        }
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let seen = self.0.lock().unwrap();
        vmm_virtio::device::read_config_bytes(&seen.config, offset, data);
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        let mut seen = self.0.lock().unwrap();
        let at = usize::try_from(offset).unwrap_or(usize::MAX);
        for (to, from) in seen.config.iter_mut().skip(at).zip(data) {
            *to = *from;
        }
    }

    fn start(&mut self, resources: Resources) -> Result<(), StartError> {
        let mut seen = self.0.lock().unwrap();
        assert!(seen.running.is_none(), "started while it runs");
        seen.starts += 1;
        seen.features = resources.features;
        if seen.refuses {
            return Err(StartError::WrongState);
        }
        let queues = resources.queues.iter();
        seen.running = Some(
            queues
                .map(|queue| queue.as_ref().map(Queue::state))
                .collect(),
        );
        seen.saved = Some(resources.saved);
        Ok(())
    }

    fn stop(&mut self) -> Option<Stopped> {
        let queues = self.0.lock().unwrap().running.take()?;
        Some(Stopped {
            queues,
            saved: SavedDevice::Vsock,
        })
    }
}

/// What the registers must be.
#[derive(Clone, Debug, Default)]
struct Model {
    status: u32,
    device_select: u32,
    driver_select: u32,
    queue_select: u32,
    features: u64,
    queues: [QueueModel; 3],
    paused: bool,
    failed: bool,
    starts: usize,
    /// There has been a driver, resets notwithstanding.
    had_driver: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct QueueModel {
    size: u32,
    addresses: [u64; 3],
    ready: bool,
}

pub(crate) fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let device = Idle::default();
    let mut driver = FakeDriver::new(Box::new(device.clone()));
    let mut model = Model::default();
    for _ in 0..STEPS_MAX {
        if input.is_empty() {
            break;
        }
        step(&mut input, &mut driver, &device, &mut model);
        check(&driver, &device, &model);
    }
}

fn step(input: &mut Input<'_>, driver: &mut FakeDriver, device: &Idle, model: &mut Model) {
    match input.u8() % 16 {
        0 => {
            driver.transport.pause();
            model.paused |= device.0.lock().unwrap().running.is_none() && model.is_live();
        }
        1 => {
            driver.transport.resume();
            if model.paused {
                model.paused = false;
                model.start(device);
            }
        }
        2 => device.0.lock().unwrap().refuses = input.u8() & 1 == 1,
        3 => {
            let mut data = [0xaa; 16];
            let width = input.below(data.len() + 1);
            driver.transport.read(input.u64(), &mut data[..width]);
        }
        4 => {
            // No register has another width, and the configuration space has no effect.
            let width = usize::from(input.u8() % 16);
            let data = input.bytes(width);
            let offset = u64::from(input.u16());
            if data.len() != 4 {
                driver.transport.write(offset, data);
            }
        }
        5 => bring_up(input, driver, device, model),
        _ => {
            let offset = input.of(OFFSETS);
            let value = match input.u8() & 3 {
                0 => input.u32(),
                1 => 0x0f,
                _ => u32::from(input.u8()),
            };
            driver.write(offset, value);
            model.write(offset, value, device);
        }
    }
}

/// What a driver does, so that an input need not find it out.
fn bring_up(input: &mut Input<'_>, driver: &mut FakeDriver, device: &Idle, model: &mut Model) {
    let features = OFFERED & !u64::from(input.u8()) << 28;
    let (low, high) = (features & 0xffff_ffff, features >> 32);
    let mut writes = vec![
        (0x70, 0),
        (0x70, 3),
        (0x24, 0),
        (0x20, low),
        (0x24, 1),
        (0x20, high),
        (0x70, 11),
    ];
    for queue in 0..u64::from(input.u8() % 4) {
        let base = queue << 16;
        writes.extend([
            (0x30, queue),
            (0x38, 16),
            (0x80, base),
            (0x90, base + 0x1000),
            (0xa0, base + 0x2000),
        ]);
        writes.push((0x44, 1));
    }
    writes.push((0x70, 15));
    for (offset, value) in writes {
        let value = u32::try_from(value).unwrap();
        driver.write(offset, value);
        model.write(offset, value, device);
    }
}

impl Model {
    fn is_live(&self) -> bool {
        self.status & DRIVER_OK != 0 && !self.failed
    }

    fn write(&mut self, offset: u64, value: u32, device: &Idle) {
        match offset {
            0x014 => self.device_select = value,
            0x024 => self.driver_select = value,
            0x030 => self.queue_select = value,
            0x020 if self.status & FEATURES_OK == 0 => {
                let value = u64::from(value);
                match self.driver_select {
                    0 => self.features = self.features >> 32 << 32 | value,
                    1 => self.features = self.features & 0xffff_ffff | value << 32,
                    _ => {}
                }
            }
            0x070 => self.set_status(value, device),
            0x044 => {
                if let Some(queue) = self.queue() {
                    queue.ready = value == 1;
                }
            }
            0x038 | 0x080..=0x0a4 => {
                if let Some(queue) = self.queue().filter(|queue| !queue.ready) {
                    queue.lay_out(offset, value);
                }
            }
            _ => {}
        }
    }

    /// The selected queue, while it may be laid out.
    fn queue(&mut self) -> Option<&mut QueueModel> {
        let setting_up = self.status & FEATURES_OK != 0 && self.status & DRIVER_OK == 0;
        let index = usize::try_from(self.queue_select).ok()?;
        self.queues.get_mut(index).filter(|_| setting_up)
    }

    fn set_status(&mut self, value: u32, device: &Idle) {
        if value == 0 {
            *self = Self {
                starts: self.starts,
                had_driver: self.had_driver,
                ..Self::default()
            };
            return;
        }
        let agreed = self.features & !OFFERED == 0 && self.features & VERSION_1 != 0;
        let mut new = value & SETTABLE & !self.status;
        if !agreed {
            new &= !FEATURES_OK;
        }
        if (self.status | new) & FEATURES_OK == 0 {
            new &= !DRIVER_OK;
        }
        self.status |= new;
        self.had_driver |= new & DRIVER != 0;
        if new & DRIVER_OK != 0 {
            self.start(device);
        }
    }

    /// The device is started if its queues can be queues.
    fn start(&mut self, device: &Idle) {
        let good = self
            .queues
            .iter()
            .zip(SIZES)
            .all(|(queue, max)| !queue.ready || queue.is_good(*max));
        if good {
            self.starts += 1;
        }
        self.failed |= !good || device.0.lock().unwrap().refuses;
    }
}

impl QueueModel {
    fn lay_out(&mut self, offset: u64, value: u32) {
        let value64 = u64::from(value);
        let address = match offset & 0xf0 {
            0x80 => 0,
            0x90 => 1,
            _ => 2,
        };
        let address = &mut self.addresses[address];
        match offset {
            0x038 => {
                self.size = if value > u32::from(u16::MAX) {
                    0
                } else {
                    value
                }
            }
            0x080 | 0x090 | 0x0a0 => *address = *address >> 32 << 32 | value64,
            0x084 | 0x094 | 0x0a4 => *address = *address & 0xffff_ffff | value64 << 32,
            _ => {}
        }
    }

    /// Section 2.7: a size that is a power of two, tables aligned and in memory, 16 MiB here.
    fn is_good(&self, max: u16) -> bool {
        let size = u64::from(self.size);
        let [descriptors, available, used] = self.addresses;
        let fits = |start: u64, bytes: u64, align: u64| {
            start.is_multiple_of(align)
                && start.checked_add(bytes).is_some_and(|end| end <= 16 << 20)
        };
        self.size.is_power_of_two()
            && size <= u64::from(max)
            && fits(descriptors, 16 * size, 16)
            && fits(available, 6 + 2 * size, 2)
            && fits(used, 6 + 8 * size, 4)
    }
}

fn check(driver: &FakeDriver, device: &Idle, model: &Model) {
    let failed = if model.failed { NEEDS_RESET } else { 0 };
    assert_eq!(driver.status(), model.status | failed);
    let offered = match model.device_select {
        0 => OFFERED & 0xffff_ffff,
        1 => OFFERED >> 32,
        _ => 0,
    };
    assert_eq!(u64::from(driver.read(0x010)), offered);
    let selected = usize::try_from(model.queue_select).unwrap();
    assert_eq!(
        driver.read(0x034),
        u32::from(SIZES.get(selected).copied().unwrap_or(0))
    );
    let ready = model.queues.get(selected).is_some_and(|queue| queue.ready);
    assert_eq!(driver.read(0x044), u32::from(ready));

    let seen = device.0.lock().unwrap();
    assert_eq!(seen.starts, model.starts);
    assert_eq!(seen.running.is_some(), model.is_live() && !model.paused);
    if !model.had_driver {
        assert_eq!(seen.config, [0; 8], "written before there is a driver");
    }
    if let Some(running) = &seen.running {
        assert_eq!(seen.features, model.features);
        for (state, queue) in running.iter().zip(&model.queues) {
            assert_eq!(state.is_some(), queue.ready);
            let Some(state) = state else { continue };
            assert_eq!(u32::from(state.size), queue.size);
            assert_eq!(
                [state.descriptors, state.available, state.used],
                queue.addresses
            );
        }
    }
}
