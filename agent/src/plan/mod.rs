//! The specification of a container or a process, turned into what the child has to do (pure).
//!
//! An OCI configuration leaves much open: what is absent, what an option implies, what may not be combined. All of that is decided
//! here, once, so that the child only carries out steps and every refusal is one error before anything exists. A [`Plan`] goes to
//! the child as JSON.
//!
//! Fails when the specification asks for something that a guest cannot honour; the message says what.

mod mount;
mod process;
#[cfg(test)]
mod tests;

use std::path::{Component, Path, PathBuf};

use oci_spec::runtime::{
    LinuxDevice, LinuxDeviceType, LinuxIdMapping, LinuxNamespaceType, LinuxResources, Spec,
};
use serde::{Deserialize, Serialize};

pub(crate) use mount::{Attributes, Mount, MountKind, Propagation, PropagationKind};
pub(crate) use process::{Capabilities, Process, Rlimit, WindowSize};

/// What one child does, from its first instruction to `execve`.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Plan {
    /// The directory of the container's cgroup. It exists.
    pub(crate) cgroup: PathBuf,
    pub(crate) entry: Entry,
    pub(crate) process: Process,
}

/// How the child comes into its namespaces.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Entry {
    /// Makes a container and becomes its first process.
    Create(Box<Container>),
    /// Joins these namespaces of the process whose pidfd the child is given.
    Join(Namespaces),
}

/// A set of namespaces, as `CLONE_NEW*` flags.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Namespaces(u32);

impl Namespaces {
    pub(crate) const MOUNT: Self = Self(LinuxNamespaceType::Mount as u32);
    pub(crate) const CGROUP: Self = Self(LinuxNamespaceType::Cgroup as u32);
    pub(crate) const UTS: Self = Self(LinuxNamespaceType::Uts as u32);
    pub(crate) const USER: Self = Self(LinuxNamespaceType::User as u32);
    pub(crate) const PID: Self = Self(LinuxNamespaceType::Pid as u32);
    pub(crate) const NETWORK: Self = Self(LinuxNamespaceType::Network as u32);

    pub(crate) fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    #[must_use]
    pub(crate) fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    #[must_use]
    pub(crate) fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// The flags, as the system calls take them.
    pub(crate) fn bits(self) -> u32 {
        self.0
    }
}

/// A container as it is to be.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Container {
    /// Made new.
    pub(crate) unshare: Namespaces,
    /// Joined by path.
    pub(crate) join: Vec<(Namespaces, PathBuf)>,
    /// Of the new user namespace.
    pub(crate) id_maps: Option<IdMaps>,
    pub(crate) hostname: Option<String>,
    pub(crate) domainname: Option<String>,
    pub(crate) rootfs: PathBuf,
    pub(crate) readonly: bool,
    pub(crate) propagation: Propagation,
    pub(crate) mounts: Vec<Mount>,
    pub(crate) devices: Vec<Device>,
    pub(crate) readonly_paths: Vec<PathBuf>,
    pub(crate) masked_paths: Vec<PathBuf>,
    /// Files below `/proc/sys`, and what is written to them.
    pub(crate) sysctl: Vec<(PathBuf, String)>,
    pub(crate) limits: Option<LinuxResources>,
}

/// The two id maps of a user namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct IdMaps {
    pub(crate) uids: Vec<IdMap>,
    pub(crate) gids: Vec<IdMap>,
}

/// `size` ids from `inside` on are those from `outside` on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct IdMap {
    pub(crate) inside: u32,
    pub(crate) outside: u32,
    pub(crate) size: u32,
}

impl IdMap {
    fn of(mappings: &[LinuxIdMapping]) -> Vec<Self> {
        mappings
            .iter()
            .map(|map| Self {
                inside: map.container_id(),
                outside: map.host_id(),
                size: map.size(),
            })
            .collect()
    }

    /// What `id` of the namespace is outside it; none where it is not mapped.
    pub(crate) fn outside(maps: &[Self], id: u32) -> Option<u32> {
        maps.iter().find_map(|map| {
            let offset = id
                .checked_sub(map.inside)
                .filter(|offset| *offset < map.size)?;
            map.outside.checked_add(offset)
        })
    }
}

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
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum DeviceKind {
    Block,
    Character,
    Fifo,
}

/// Why a specification cannot be honoured.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PlanError {
    #[error("the specification is not valid JSON")]
    Json(#[source] serde_json::Error),
    #[error("the specification has no {0}")]
    Missing(&'static str),
    #[error("{what} is not supported in a guest")]
    Unsupported { what: String },
    #[error("{what}: {value:?} is not valid")]
    Invalid { what: &'static str, value: String },
    #[error("mount of {destination}: {option:?} is not a known option")]
    MountOption { destination: String, option: String },
    #[error("cwd {0:?} is not an absolute path")]
    RelativeCwd(PathBuf),
}

/// Reads an OCI configuration. `cgroup` is the directory of the container's cgroup.
pub(crate) fn container(spec: &[u8], cgroup: &Path, size: WindowSize) -> Result<Plan, PlanError> {
    let spec: Spec = serde_json::from_slice(spec).map_err(PlanError::Json)?;
    let linux = spec
        .linux()
        .as_ref()
        .ok_or(PlanError::Missing("linux section"))?;
    let process = spec
        .process()
        .as_ref()
        .ok_or(PlanError::Missing("process"))?;
    let root = spec.root().as_ref().ok_or(PlanError::Missing("root"))?;
    refuse(linux)?;
    let (unshare, join) = namespaces(linux.namespaces().as_deref().unwrap_or_default())?;
    let paths = |paths: &Option<Vec<String>>| paths.iter().flatten().map(PathBuf::from).collect();
    let container = Container {
        unshare,
        join,
        id_maps: id_maps(linux, unshare)?,
        hostname: spec.hostname().clone().filter(|name| !name.is_empty()),
        domainname: spec.domainname().clone().filter(|name| !name.is_empty()),
        rootfs: root.path().clone(),
        readonly: root.readonly().unwrap_or(false),
        propagation: Propagation::of_rootfs(linux.rootfs_propagation().as_deref())?,
        mounts: spec
            .mounts()
            .iter()
            .flatten()
            .map(mount::read)
            .collect::<Result<_, _>>()?,
        devices: devices(linux.devices().as_deref().unwrap_or_default())?,
        readonly_paths: paths(linux.readonly_paths()),
        masked_paths: paths(linux.masked_paths()),
        sysctl: sysctls(linux)?,
        limits: linux.resources().clone(),
    };
    let process = process::read(process, linux.seccomp().as_ref(), size)?;
    Ok(Plan {
        cgroup: cgroup.to_owned(),
        entry: Entry::Create(Box::new(container)),
        process,
    })
}

/// Reads an OCI process that is to run in a container with `init`: what belongs to the container (its seccomp program, capabilities that
/// are not given) is taken over.
pub(crate) fn exec(process: &[u8], init: &Process, size: WindowSize) -> Result<Process, PlanError> {
    let given: oci_spec::runtime::Process =
        serde_json::from_slice(process).map_err(PlanError::Json)?;
    let mut process = process::read(&given, init.seccomp.as_ref(), size)?;
    if given.capabilities().is_none() {
        process.capabilities = init.capabilities;
    }
    process.no_new_privileges |= init.no_new_privileges;
    process.oom_score_adj = process.oom_score_adj.or(init.oom_score_adj);
    Ok(process)
}

fn refuse(linux: &oci_spec::runtime::Linux) -> Result<(), PlanError> {
    let asked = [
        ("linux.intelRdt", linux.intel_rdt().is_some()),
        ("linux.memoryPolicy", linux.memory_policy().is_some()),
        (
            "linux.netDevices",
            linux
                .net_devices()
                .as_ref()
                .is_some_and(|devices| !devices.is_empty()),
        ),
        ("linux.personality", linux.personality().is_some()),
        (
            "linux.timeOffsets",
            linux
                .time_offsets()
                .as_ref()
                .is_some_and(|offsets| !offsets.is_empty()),
        ),
    ];
    match asked.into_iter().find(|(_, given)| *given) {
        Some((what, _)) => Err(PlanError::Unsupported {
            what: what.to_owned(),
        }),
        None => Ok(()),
    }
}

type Joined = Vec<(Namespaces, PathBuf)>;

fn namespaces(
    given: &[oci_spec::runtime::LinuxNamespace],
) -> Result<(Namespaces, Joined), PlanError> {
    let mut unshare = Namespaces::default();
    let mut join = Vec::new();
    for namespace in given {
        let flag = Namespaces(namespace.typ() as u32);
        match namespace
            .path()
            .as_ref()
            .filter(|path| !path.as_os_str().is_empty())
        {
            Some(path) => join.push((flag, path.clone())),
            None => unshare = unshare.with(flag),
        }
    }
    if !unshare.contains(Namespaces::MOUNT) {
        return Err(PlanError::Unsupported {
            what: "a container without a mount namespace of its own".to_owned(),
        });
    }
    if join.iter().any(|(flag, _)| *flag == Namespaces::USER) {
        return Err(PlanError::Unsupported {
            what: "a user namespace given by path".to_owned(),
        });
    }
    Ok((unshare, join))
}

fn id_maps(
    linux: &oci_spec::runtime::Linux,
    unshare: Namespaces,
) -> Result<Option<IdMaps>, PlanError> {
    if !unshare.contains(Namespaces::USER) {
        return Ok(None);
    }
    let maps = IdMaps {
        uids: IdMap::of(linux.uid_mappings().as_deref().unwrap_or_default()),
        gids: IdMap::of(linux.gid_mappings().as_deref().unwrap_or_default()),
    };
    if maps.uids.is_empty() || maps.gids.is_empty() {
        return Err(PlanError::Missing(
            "uidMappings and gidMappings for its user namespace",
        ));
    }
    Ok(Some(maps))
}

/// The devices that every container has (OCI runtime specification, "Default Devices"), without those that the specification lists itself.
const DEFAULT_DEVICES: [(&str, u32, u32); 6] = [
    ("/dev/null", 1, 3),
    ("/dev/zero", 1, 5),
    ("/dev/full", 1, 7),
    ("/dev/random", 1, 8),
    ("/dev/urandom", 1, 9),
    ("/dev/tty", 5, 0),
];

/// Read and write for all.
const DEVICE_MODE: u32 = 0o666;

fn devices(given: &[LinuxDevice]) -> Result<Vec<Device>, PlanError> {
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
    })
}

/// `net.ipv4.ip_forward` is `net/ipv4/ip_forward`; a name that has slashes already keeps its dots (they are part of an interface's name).
fn sysctls(linux: &oci_spec::runtime::Linux) -> Result<Vec<(PathBuf, String)>, PlanError> {
    let given = linux.sysctl().iter().flatten();
    given
        .map(|(name, value)| {
            let path = PathBuf::from(if name.contains('/') {
                name.clone()
            } else {
                name.replace('.', "/")
            });
            let plain = path
                .components()
                .all(|part| matches!(part, Component::Normal(_)));
            if !plain || path.as_os_str().is_empty() {
                return Err(PlanError::Invalid {
                    what: "sysctl",
                    value: name.clone(),
                });
            }
            Ok((path, value.clone()))
        })
        .collect()
}
