//! What ends at the border of a VM, each with its reason (pure).

use std::path::{Path, PathBuf};

use oci_spec::runtime::{
    Linux, LinuxDevice, LinuxDeviceType, LinuxNamespaceType, LinuxResources, LinuxSeccompAction,
    Spec,
};

use super::{Shared, SpecError};
use crate::hooks::{Hook, HookKind, Hooks};

/// Character devices that the guest's kernel has itself: null, zero, full, random, urandom; tty, console, ptmx; tun, fuse.
const GUEST_DEVICES: [(i64, i64); 10] = [
    (1, 3),
    (1, 5),
    (1, 7),
    (1, 8),
    (1, 9),
    (5, 0),
    (5, 1),
    (5, 2),
    (10, 200),
    (10, 229),
];

/// Without these a process would be in the host's; with each, what that is and why it cannot be.
const NEEDED: [(LinuxNamespaceType, &str, &str); 3] = [
    (
        LinuxNamespaceType::Network,
        "the host's network namespace",
        "the guest has a network stack of its own; add a namespace of type network",
    ),
    (
        LinuxNamespaceType::Pid,
        "the host's pid namespace",
        "the guest's kernel numbers its processes; add a namespace of type pid",
    ),
    (
        LinuxNamespaceType::Mount,
        "the host's mount namespace",
        "the guest's kernel mounts its file systems; add a namespace of type mount",
    ),
];

/// Returns the namespaces that are there already, which a member of a sandbox may share.
pub(super) fn namespaces(linux: &Linux) -> Result<Vec<Shared>, SpecError> {
    let asked = linux.namespaces().as_deref().unwrap_or_default();
    for (typ, what, why) in NEEDED {
        if !asked.iter().any(|namespace| namespace.typ() == typ) {
            return Err(refused(what, why));
        }
    }
    let mut shared = Vec::new();
    for (index, namespace) in asked.iter().enumerate() {
        let kind = namespace.typ();
        if asked[..index].iter().any(|other| other.typ() == kind) {
            return Err(refused(
                format!("a second namespace of type {kind}"),
                "a process is in one of each kind",
            ));
        }
        let Some(path) = namespace.path() else {
            continue;
        };
        let named = || format!("the {kind} namespace {}", path.display());
        if !path.is_absolute() {
            return Err(refused(named(), "it is not an absolute path"));
        }
        if kind == LinuxNamespaceType::Mount {
            return Err(refused(named(), "a container has mounts of its own"));
        }
        let path = path.clone();
        shared.push(Shared { kind, path });
    }
    Ok(shared)
}

/// The path of the network namespace.
pub(super) fn network_of(linux: &Linux) -> Option<PathBuf> {
    let mut namespaces = linux.namespaces().iter().flatten();
    let network = namespaces.find(|namespace| namespace.typ() == LinuxNamespaceType::Network);
    network.and_then(|network| network.path().clone())
}

pub(super) fn devices(linux: &Linux) -> Result<(), SpecError> {
    for device in linux.devices().iter().flatten() {
        if !is_guests(device) {
            return Err(refused(
                format!("the device {}", device.path().display()),
                "it is the host's, and the guest has no driver for it",
            ));
        }
    }
    Ok(())
}

fn is_guests(device: &LinuxDevice) -> bool {
    match device.typ() {
        LinuxDeviceType::C | LinuxDeviceType::U => {
            GUEST_DEVICES.contains(&(device.major(), device.minor()))
        }
        LinuxDeviceType::P => true,
        LinuxDeviceType::A | LinuxDeviceType::B => false,
    }
}

pub(super) fn seccomp_notify(linux: &Linux) -> Result<(), SpecError> {
    let Some(seccomp) = linux.seccomp() else {
        return Ok(());
    };
    let notifies = |action| action == LinuxSeccompAction::ScmpActNotify;
    let rules = seccomp.syscalls().iter().flatten();
    if notifies(seccomp.default_action())
        || rules
            .map(oci_spec::runtime::LinuxSyscall::action)
            .any(notifies)
    {
        return Err(refused(
            "linux.seccomp with a notify action",
            "the listener on the host cannot act on a guest's process",
        ));
    }
    Ok(())
}

pub(super) fn host_features(linux: &Linux) -> Result<(), SpecError> {
    if linux.intel_rdt().is_some() {
        return Err(refused(
            "linux.intelRdt",
            "the guest's CPUs have no cache allocation",
        ));
    }
    if linux
        .net_devices()
        .as_ref()
        .is_some_and(|devices| !devices.is_empty())
    {
        return Err(refused(
            "linux.netDevices",
            "a host interface cannot be moved into a guest",
        ));
    }
    Ok(())
}

/// Version 2 of cgroups has no realtime scheduling limits.
pub(super) fn realtime(resources: &LinuxResources) -> Result<(), SpecError> {
    let cpu = resources.cpu().as_ref();
    if cpu.is_some_and(|cpu| cpu.realtime_runtime().is_some() || cpu.realtime_period().is_some()) {
        return Err(refused(
            "a limit on realtime CPU time",
            "the guest has version 2 of cgroups, which has none",
        ));
    }
    Ok(())
}

/// The hooks that run on the host. Those before the start of the program are the guest's.
pub(super) fn hooks(spec: &Spec) -> Result<Hooks, SpecError> {
    let Some(hooks) = spec.hooks() else {
        return Ok(Hooks::default());
    };
    let given = [
        hooks.prestart(),
        hooks.create_runtime(),
        hooks.create_container(),
        hooks.start_container(),
        hooks.poststart(),
        hooks.poststop(),
    ];
    for hook in given.into_iter().flatten().flatten() {
        if let Some(seconds) = hook.timeout().filter(|seconds| *seconds <= 0) {
            let path = hook.path().clone();
            return Err(SpecError::HookTimeout { path, seconds });
        }
    }
    let mut create = Hook::all_of(HookKind::Prestart, hooks.prestart().as_ref());
    create.extend(Hook::all_of(
        HookKind::CreateRuntime,
        hooks.create_runtime().as_ref(),
    ));
    create.extend(Hook::all_of(
        HookKind::CreateContainer,
        hooks.create_container().as_ref(),
    ));
    let hooks = Hooks {
        create,
        poststart: Hook::all_of(HookKind::Poststart, hooks.poststart().as_ref()),
        poststart_must_succeed: is_since_1_3(spec.version()),
        poststop: Hook::all_of(HookKind::Poststop, hooks.poststop().as_ref()),
    };
    let mut all = hooks
        .create
        .iter()
        .chain(&hooks.poststart)
        .chain(&hooks.poststop);
    match all.find(|hook| !hook.is_absolute()) {
        Some(hook) => Err(SpecError::RelativeHook(hook.path().to_owned())),
        None => Ok(hooks),
    }
}

/// Whether a configuration of version 1.x follows the rules that 1.3 has changed.
fn is_since_1_3(version: &str) -> bool {
    let mut numbers = version.split(['.', '-', '+']).skip(1);
    let minor = numbers.next().and_then(|minor| minor.parse::<u32>().ok());
    minor.is_some_and(|minor| minor >= 3)
}

/// Files that a kernel makes are about that kernel: the host's say nothing true about the guest.
pub(super) fn kernel_files(source: &Path) -> Result<(), SpecError> {
    let of_a_kernel = ["/proc", "/sys", "/dev"]
        .into_iter()
        .any(|top| source.starts_with(top));
    if of_a_kernel && !source.starts_with("/dev/shm") {
        return Err(refused(
            format!("the mount of the host's {}", source.display()),
            "it belongs to the host's kernel",
        ));
    }
    Ok(())
}

pub(super) fn refused(what: impl Into<String>, why: &'static str) -> SpecError {
    SpecError::Refused {
        what: what.into(),
        why,
    }
}
