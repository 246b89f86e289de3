//! The device nodes of a container (pure).

use std::path::{Path, PathBuf};

use oci_spec::runtime::{LinuxDevice, LinuxDeviceType};
use serde::{Deserialize, Serialize};

use super::PlanError;

/// A device node of the container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Device {
    pub(crate) path: PathBuf,
    pub(crate) kind: DeviceKind,
    pub(crate) major: u32,
    pub(crate) minor: u32,
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Listed by the specification, so that another file in its place is an error.
    pub(crate) listed: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum DeviceKind {
    Block,
    Character,
    Fifo,
}

/// The devices that every container has (OCI runtime specification, "Default Devices"), without those that the specification lists itself.
pub(crate) const DEFAULT_DEVICES: [(&str, u32, u32); 6] = [
    ("/dev/null", 1, 3),
    ("/dev/zero", 1, 5),
    ("/dev/full", 1, 7),
    ("/dev/random", 1, 8),
    ("/dev/urandom", 1, 9),
    ("/dev/tty", 5, 0),
];

/// Read and write for all.
const DEVICE_MODE: u32 = 0o666;

pub(super) fn read(given: &[LinuxDevice]) -> Result<Vec<Device>, PlanError> {
    let mut devices = given.iter().map(device).collect::<Result<Vec<_>, _>>()?;
    for (path, major, minor) in DEFAULT_DEVICES {
        if !devices.iter().any(|device| device.path == Path::new(path)) {
            devices.push(Device {
                path: PathBuf::from(path),
                kind: DeviceKind::Character,
                major,
                minor,
                mode: DEVICE_MODE,
                uid: 0,
                gid: 0,
                listed: false,
            });
        }
    }
    Ok(devices)
}

fn device(given: &LinuxDevice) -> Result<Device, PlanError> {
    let invalid = || PlanError::Invalid {
        what: "device",
        value: given.path().display().to_string(),
    };
    let kind = match given.typ() {
        LinuxDeviceType::B => DeviceKind::Block,
        LinuxDeviceType::C | LinuxDeviceType::U => DeviceKind::Character,
        LinuxDeviceType::P => DeviceKind::Fifo,
        LinuxDeviceType::A => return Err(invalid()),
    };
    if !given.path().is_absolute() {
        return Err(invalid());
    }
    Ok(Device {
        path: given.path().clone(),
        kind,
        major: u32::try_from(given.major()).map_err(|_| invalid())?,
        minor: u32::try_from(given.minor()).map_err(|_| invalid())?,
        mode: given.file_mode().unwrap_or(DEVICE_MODE) & 0o7777,
        uid: given.uid().unwrap_or(0),
        gid: given.gid().unwrap_or(0),
        listed: true,
    })
}
