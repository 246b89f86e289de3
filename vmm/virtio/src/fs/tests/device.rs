//! The device: its configuration space, its worker, its sessions.

use std::os::unix::fs::PermissionsExt;
use std::sync::{Arc, Mutex};

use tempfile::TempDir;
use virtiofsd::filesystem::FsOptions;
use virtiofsd::fuse::{ForgetIn, InHeader, MkdirIn, Opcode, OutHeader};
use vm_memory::ByteValued;

use super::client::{init_body, linux_options, parse, proc_self_fd, with_nul};
use crate::fs::{Fs, FsConfig};
use crate::saved::SavedDevice;
use crate::testing::FakeDriver;
use crate::{Device, Resources, StartError, Stopped, Traits};

const HIPRIO: usize = 0;
const REQUEST: usize = 1;
const ROOM: u32 = 4096;

fn device(directory: &TempDir) -> Fs {
    Fs::new(FsConfig {
        tag: "husk".to_owned(),
        root: directory.path().to_str().unwrap().to_owned(),
        proc_self_fd: proc_self_fd(),
    })
    .unwrap()
    .of_guest()
}

/// A device with a file `a` in its root, brought up.
fn driver() -> (FakeDriver, TempDir) {
    let directory = TempDir::new().unwrap();
    std::fs::write(directory.path().join("a"), "").unwrap();
    let mut driver = FakeDriver::new(Box::new(device(&directory)));
    driver.bring_up();
    (driver, directory)
}

fn message(opcode: Opcode, inode: u64, body: &[u8]) -> Vec<u8> {
    let header = InHeader {
        len: u32::try_from(size_of::<InHeader>() + body.len()).unwrap(),
        opcode: opcode as u32,
        nodeid: inode,
        ..InHeader::default()
    };
    [header.as_slice(), body].concat()
}

/// The answer's errno.
fn ask(driver: &mut FakeDriver, opcode: Opcode, inode: u64, body: &[u8]) -> i32 {
    let reply = driver.exchange(REQUEST, &message(opcode, inode, body), ROOM);
    -parse::<OutHeader>(&reply).error
}

fn init(driver: &mut FakeDriver) -> i32 {
    ask(driver, Opcode::Init, 0, &init_body(linux_options()))
}

fn open(driver: &mut FakeDriver, inode: u64) -> i32 {
    ask(driver, Opcode::Open, inode, &[0; 8])
}

#[test]
fn configuration_space_is_the_tag_and_one_request_queue() {
    let device = device(&TempDir::new().unwrap());
    let mut config = [0xff; 48];
    device.read_config(0, &mut config);
    assert_eq!(&config[..5], b"husk\0");
    assert_eq!(&config[36..], [1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    let traits = device.traits();
    assert_eq!((traits.id, traits.queue_sizes.len()), (26, 2));
}

#[test]
fn tag_must_fit() {
    for (length, fits) in [(0, false), (1, true), (36, true), (37, false)] {
        let config = FsConfig {
            tag: "t".repeat(length),
            root: "/".to_owned(),
            proc_self_fd: proc_self_fd(),
        };
        assert_eq!(Fs::new(config).is_ok(), fits);
    }
}

#[test]
fn requests_are_answered_and_forgets_are_taken_from_their_queue() {
    let (mut driver, _directory) = driver();
    assert_eq!(init(&mut driver), 0);
    assert_eq!(ask(&mut driver, Opcode::Lookup, 1, &with_nul(b"a")), 0);
    assert_eq!(open(&mut driver, 2), 0);
    let forget = message(Opcode::Forget, 2, ForgetIn { nlookup: 1 }.as_slice());
    assert_eq!(driver.exchange(HIPRIO, &forget, 0), b"");
    assert_eq!(open(&mut driver, 2), libc::EBADF);
}

#[test]
fn more_requests_than_a_turn_takes_are_all_answered() {
    let (mut driver, _directory) = driver();
    assert_eq!(init(&mut driver), 0);
    for _ in 0..20 {
        for _ in 0..8 {
            driver.offer(REQUEST, &message(Opcode::Getattr, 1, &[0; 16]), ROOM);
        }
        for _ in 0..8 {
            let reply = driver.wait_used(REQUEST);
            assert_eq!(parse::<OutHeader>(&reply).error, 0);
        }
    }
}

#[test]
fn session_goes_on_after_a_pause() {
    let (mut driver, _directory) = driver();
    assert_eq!(init(&mut driver), 0);
    assert_eq!(ask(&mut driver, Opcode::Lookup, 1, &with_nul(b"a")), 0);
    for _ in 0..3 {
        driver.transport.pause();
        driver.transport.resume();
        assert_eq!(open(&mut driver, 2), 0);
    }
}

#[test]
fn modes_are_the_guests_before_and_after_a_pause() {
    let (mut driver, directory) = driver();
    // Without ACLs the guest applies its umask itself.
    let options = linux_options() - FsOptions::POSIX_ACL;
    assert_eq!(ask(&mut driver, Opcode::Init, 0, &init_body(options)), 0);
    for name in ["before", "after"] {
        let mode = MkdirIn {
            mode: 0o777,
            umask: 0,
        };
        let body = [mode.as_slice(), &with_nul(name.as_bytes())].concat();
        assert_eq!(ask(&mut driver, Opcode::Mkdir, 1, &body), 0);
        let metadata = std::fs::metadata(directory.path().join(name)).unwrap();
        assert_eq!(metadata.permissions().mode() & 0o777, 0o777);
        driver.transport.pause();
        driver.transport.resume();
    }
}

#[test]
fn request_made_during_a_pause_is_answered_after_it() {
    let (mut driver, _directory) = driver();
    assert_eq!(init(&mut driver), 0);
    driver.transport.pause();
    driver.offer(REQUEST, &message(Opcode::Getattr, 1, &[0; 16]), ROOM);
    assert_eq!(driver.used(REQUEST), None);
    driver.transport.resume();
    let reply = driver.wait_used(REQUEST);
    assert_eq!(parse::<OutHeader>(&reply).error, 0);
}

#[test]
fn reset_ends_the_session() {
    let (mut driver, _directory) = driver();
    assert_eq!(init(&mut driver), 0);
    assert_eq!(ask(&mut driver, Opcode::Getattr, 1, &[0; 16]), 0);
    driver.reset();
    driver.bring_up();
    assert_eq!(ask(&mut driver, Opcode::Getattr, 1, &[0; 16]), libc::EBADF);
    assert_eq!(init(&mut driver), 0);
}

#[test]
fn session_of_a_guest_that_holds_nothing_goes_on_in_another_process() {
    let saved = saved_after(|_| ());
    let (mut driver, _directory, _) = moved(saved);
    assert_eq!(ask(&mut driver, Opcode::Getattr, 1, &[0; 16]), 0);
    assert_eq!(ask(&mut driver, Opcode::Lookup, 1, &with_nul(b"a")), 0);
    assert_eq!(open(&mut driver, 2), 0);
}

#[test]
fn session_that_went_on_elsewhere_can_be_saved_again() {
    let (mut driver, _directory, saved) = moved(saved_after(|_| ()));
    driver.transport.pause();
    let again = saved.lock().unwrap().take().unwrap();
    let (mut driver, _directory, _) = moved(again);
    assert_eq!(ask(&mut driver, Opcode::Getattr, 1, &[0; 16]), 0);
}

#[test]
fn session_of_a_guest_that_holds_files_is_refused_by_another_process() {
    let saved = saved_after(|driver| {
        assert_eq!(ask(driver, Opcode::Lookup, 1, &with_nul(b"a")), 0);
    });
    assert!(matches!(saved, SavedDevice::FsSession { init: None, .. }));
    let (driver, _directory, _) = moved(saved);
    driver.wait_needs_reset();
}

#[test]
fn saved_request_that_is_none_stops_the_device() {
    for init in [vec![], vec![0; 104], vec![0xff; 104], vec![0; 5000]] {
        let init = Some(init);
        let (driver, _directory, _) = moved(SavedDevice::FsSession { pause: 1, init });
        driver.wait_needs_reset();
    }
}

type Saved = Arc<Mutex<Option<SavedDevice>>>;

/// A device that is started from a state from elsewhere, and shows the one it is stopped in.
#[derive(Debug)]
struct Moved {
    device: Fs,
    saved: Saved,
}

impl Device for Moved {
    fn traits(&self) -> Traits {
        self.device.traits()
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        self.device.read_config(offset, data);
    }

    fn start(&mut self, mut resources: Resources) -> Result<(), StartError> {
        if let Some(saved) = self.saved.lock().unwrap().take() {
            resources.saved = saved;
        }
        self.device.start(resources)
    }

    fn stop(&mut self) -> Option<Stopped> {
        let stopped = self.device.stop()?;
        *self.saved.lock().unwrap() = Some(stopped.saved.clone());
        Some(stopped)
    }
}

/// A driver of a device that begins with `saved`; and the state it is next stopped in.
fn moved(saved: SavedDevice) -> (FakeDriver, TempDir, Saved) {
    let directory = TempDir::new().unwrap();
    std::fs::write(directory.path().join("a"), "").unwrap();
    let saved = Arc::new(Mutex::new(Some(saved)));
    let device = Moved {
        device: device(&directory),
        saved: Arc::clone(&saved),
    };
    let mut driver = FakeDriver::new(Box::new(device));
    driver.bring_up();
    (driver, directory, saved)
}

/// The state of a device after INIT and what `then` does.
fn saved_after(then: impl FnOnce(&mut FakeDriver)) -> SavedDevice {
    let (mut driver, _directory, saved) = moved(SavedDevice::Fresh);
    assert_eq!(init(&mut driver), 0);
    then(&mut driver);
    driver.transport.pause();
    saved.lock().unwrap().take().unwrap()
}

#[test]
fn ring_that_lies_stops_the_device() {
    let (mut driver, _directory) = driver();
    assert_eq!(init(&mut driver), 0);
    driver.lie_about_available(REQUEST, 1000);
    driver.wait_needs_reset();
}

#[test]
fn missing_root_is_the_errno_of_init() {
    let (mut driver, directory) = driver();
    std::fs::remove_dir_all(directory.path()).unwrap();
    assert_eq!(init(&mut driver), libc::ENOENT);
    std::fs::create_dir(directory.path()).unwrap();
    assert_eq!(init(&mut driver), 0);
}
