//! The specification of a container or a process, turned into what the child has to do (pure).
//!
//! An OCI configuration leaves much open: what is absent, what an option implies, what may not be combined. All of that is decided
//! here, once, so that the child only carries out steps and every refusal is one error before anything exists. A [`Plan`] goes to
//! the child as JSON.
//!
//! Fails when the specification asks for something that a guest cannot honour; the message says what.

mod device;
mod hook;
mod limits;
mod mount;
mod namespace;
mod process;
mod schedule;
mod sysctl;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

use oci_spec::runtime::{Linux, LinuxResources, Spec};
use serde::{Deserialize, Serialize};

pub(crate) use device::{DEFAULT_DEVICES, Device, DeviceKind};
pub(crate) use hook::{Hook, StartHooks};
pub(crate) use limits::{Limit, Limits, Present};
pub(crate) use mount::{Attributes, Mount, MountKind, Propagation, PropagationKind};
pub(crate) use namespace::{IdMap, IdMaps, Namespaces, TimeOffset, process_of};
pub(crate) use process::{Capabilities, Process, Rlimit, WindowSize};
pub(crate) use schedule::{Schedule, Scheduler};

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

/// A container as it is to be.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Container {
    /// Made new.
    pub(crate) unshare: Namespaces,
    /// Joined by path.
    pub(crate) join: Vec<(Namespaces, PathBuf)>,
    pub(crate) time_offsets: Vec<TimeOffset>,
    /// Of the user namespace, new or joined.
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
    pub(crate) limits: Limits,
    pub(crate) start_hooks: Option<StartHooks>,
}

impl Container {
    /// All namespaces that the container does not share with the agent.
    pub(crate) fn namespaces(&self) -> Namespaces {
        let joined = self.join.iter();
        joined.fold(self.unshare, |all, (kind, _)| all.with(*kind))
    }
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
    #[error("{what}: {why}")]
    Conflict { what: String, why: &'static str },
    #[error("mount of {destination}: {option:?} is not a known option")]
    MountOption { destination: String, option: String },
    #[error("cwd {0:?} is not an absolute path")]
    RelativeCwd(PathBuf),
}

/// Where a container comes to be, and what it is called.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place<'p> {
    pub(crate) id: &'p str,
    /// The directory of its cgroup.
    pub(crate) cgroup: &'p Path,
}

/// Reads an OCI configuration.
pub(crate) fn container(
    spec: &[u8],
    place: Place<'_>,
    size: WindowSize,
) -> Result<Plan, PlanError> {
    let spec: Spec = serde_json::from_slice(spec).map_err(PlanError::Json)?;
    // Without the section it has no namespaces of its own, which is refused as such.
    let linux = spec
        .linux()
        .as_ref()
        .ok_or_else(namespace::no_mount_namespace)?;
    let process = spec
        .process()
        .as_ref()
        .ok_or(PlanError::Missing("process"))?;
    let root = spec.root().as_ref().ok_or(PlanError::Missing("root"))?;
    refuse(linux)?;
    let layout = namespace::read(linux)?;
    let (own, id_maps) = (layout.all(), layout.id_maps);
    let mounts = spec.mounts().iter().flatten();
    // Devices are denied whatever is said of resources.
    let nothing = LinuxResources::default();
    let resources = linux.resources().as_ref().unwrap_or(&nothing);
    let limits = limits::read(resources, &Present::default())?;
    let container = Container {
        unshare: layout.unshare,
        join: layout.join,
        time_offsets: layout.time_offsets,
        hostname: spec.hostname().clone().filter(|name| !name.is_empty()),
        domainname: spec.domainname().clone().filter(|name| !name.is_empty()),
        rootfs: root.path().clone(),
        readonly: root.readonly().unwrap_or(false),
        propagation: Propagation::of_rootfs(linux.rootfs_propagation().as_deref())?,
        mounts: mounts.map(mount::read).collect::<Result<_, _>>()?,
        devices: device::read(linux.devices().as_deref().unwrap_or_default())?,
        readonly_paths: inside(linux.readonly_paths().as_deref()),
        masked_paths: inside(linux.masked_paths().as_deref()),
        sysctl: sysctl::read(linux.sysctl().as_ref(), own)?,
        limits,
        start_hooks: hook::read(&spec, place.id)?,
        id_maps,
    };
    let mut process = process::read(process, linux.seccomp().as_ref(), size)?;
    process.schedule.personality = linux
        .personality()
        .as_ref()
        .map(schedule::personality)
        .transpose()?;
    Ok(Plan {
        cgroup: place.cgroup.to_owned(),
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
    process.schedule = process.schedule.or(&init.schedule);
    Ok(process)
}

/// Reads new limits of a container, OCI `linux.resources`.
pub(crate) fn update(resources: &[u8], present: &Present) -> Result<Limits, PlanError> {
    let resources: LinuxResources = serde_json::from_slice(resources).map_err(PlanError::Json)?;
    limits::read(&resources, present)
}

/// Paths inside the container. A relative one counts from its root, as with runc.
fn inside(paths: Option<&[String]>) -> Vec<PathBuf> {
    let paths = paths.unwrap_or_default().iter();
    paths.map(|path| Path::new("/").join(path)).collect()
}

fn refuse(linux: &Linux) -> Result<(), PlanError> {
    let devices = linux.net_devices().as_ref();
    let asked = [
        ("linux.intelRdt", linux.intel_rdt().is_some()),
        ("linux.memoryPolicy", linux.memory_policy().is_some()),
        (
            "linux.netDevices",
            devices.is_some_and(|devices| !devices.is_empty()),
        ),
    ];
    match asked.into_iter().find(|(_, given)| *given) {
        Some((what, _)) => Err(PlanError::Unsupported {
            what: what.to_owned(),
        }),
        None => Ok(()),
    }
}
