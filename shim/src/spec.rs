//! A bundle's `config.json`: what the guest must do, what the host must do, and what neither can (pure).
//!
//! ```text
//!   config.json ─► split ─┬─► the guest's configuration: the same, with paths below SHARE_DIR where they were the host's
//!                         └─► the host's part: root file system and bind mounts for the share, cgroup path, size of the VM
//! ```
//!
//! File systems that a kernel makes (tmpfs, proc, sysfs, devpts, mqueue, cgroup) are the guest kernel's and pass unchanged. A
//! namespace that the configuration does not ask for is "the runtime's own", which here is the VM's; only where that would
//! silently be less than asked (network, pid, mount) it is refused. What cannot be honoured is an error that
//! names the field, never a silence.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use agent_api::SHARE_DIR;
use oci_spec::runtime::{Linux, LinuxNamespaceType, LinuxResources, Mount, Process, Spec};
use serde_json::Value;

use crate::hooks::Hooks;
use crate::id_map::IdMap;

mod below;
mod capability;
mod defaults;
mod id_map;
mod member;
mod memory;
mod notify;
mod refuse;
mod size;
mod vm;

pub(crate) use member::Shared;
pub(crate) use memory::{HostMemory, LookAtMemory};
pub(crate) use size::{ConfiguredSize, Demand, Extent, HostSize, SizeError, VmSize};
use vm::Asked;

/// The version of the OCI runtime specification that configurations are read by, and states are written.
pub(crate) const VERSION: &str = "1.2.1";

/// The two halves of a configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Split {
    /// The guest's configuration, but for the namespaces that it shares.
    pub(crate) guest: Spec,
    /// The host's part.
    pub(crate) host: HostPart,
}

/// What a container needs on the host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct HostPart {
    /// `root.path`: absolute, or relative to the bundle.
    pub(crate) rootfs: PathBuf,
    /// Mounts the share must offer.
    pub(crate) binds: Vec<Bind>,
    /// Whether the process has a terminal.
    pub(crate) terminal: bool,
    /// The container's hostname.
    pub(crate) hostname: Option<String>,
    /// The sandbox whose VM it is to be in, if not one of its own.
    pub(crate) sandbox: Option<String>,
    /// The network namespace that whoever stands for the container is to be in.
    pub(crate) network: Option<PathBuf>,
    /// The namespaces that are there already: those that a member of a sandbox shares. A container
    /// that is none may name a network namespace, see [`HostPart::check_alone`].
    pub(crate) shared: Vec<Shared>,
    /// Where the host cgroup is to be.
    pub(crate) cgroups_path: Option<PathBuf>,
    /// What the container may use.
    pub(crate) demand: Demand,
    /// Copied to the record.
    pub(crate) annotations: BTreeMap<String, String>,
    /// Programs to run here.
    pub(crate) hooks: Hooks,
}

impl HostPart {
    /// Refuses namespaces that a container in a VM of its own cannot enter: all but the network's,
    /// which is the VMM's.
    pub(crate) fn check_alone(&self) -> Result<(), SpecError> {
        let mut shared = self.shared.iter();
        match shared.find(|shared| shared.kind != LinuxNamespaceType::Network) {
            Some(shared) => Err(shared.nobodys()),
            None => Ok(()),
        }
    }
}

/// One bind mount: `source` is offered to the guest as `mounts/<position in the list>`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Bind {
    /// Absolute, or relative to the bundle.
    pub(crate) source: PathBuf,
    /// Absolute, in the container.
    pub(crate) destination: PathBuf,
    /// What not even the VMM may write to.
    pub(crate) read_only: ReadOnly,
    /// With the mounts below it.
    pub(crate) recursive: bool,
    /// Mounts that appear below it later are seen.
    pub(crate) follows_host: bool,
    /// Its files have other owners.
    pub(crate) id_map: Option<IdMap>,
}

/// How much of a bind mount is read-only.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum ReadOnly {
    #[default]
    Nothing,
    /// Not what is mounted below it.
    Itself,
    WithAllBelow,
}

impl ReadOnly {
    /// Of contrary options the last counts, and those for all mounts count more than those for the first.
    fn of(options: &[String]) -> Self {
        let last = |on: &str, off: &str| {
            let mut said = options.iter().rev();
            let word = said.find(|option| *option == on || *option == off);
            word.map(|word| word == on)
        };
        match (last("rro", "rrw"), last("ro", "rw")) {
            (Some(true), _) => Self::WithAllBelow,
            (None, Some(true)) => Self::Itself,
            _ => Self::Nothing,
        }
    }
}

/// Why a configuration cannot be run.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SpecError {
    #[error("config.json is not an OCI configuration")]
    Parse(#[source] serde_json::Error),
    #[error("the resources are not OCI linux.resources")]
    Resources(#[source] serde_json::Error),
    #[error("the configuration for the guest cannot be written")]
    Write(#[source] serde_json::Error),
    #[error("ociVersion {0:?} is not supported: 1.x is")]
    Version(String),
    /// A field that must be there.
    #[error("{0} is missing or empty")]
    Missing(&'static str),
    #[error("the hook {} is not an absolute path", .0.display())]
    RelativeHook(PathBuf),
    #[error("cannot read {}", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("process.cwd {} is not an absolute path", .0.display())]
    RelativeCwd(PathBuf),
    /// A size that is none.
    #[error("{name} is {value:?}, not a number of a possible size")]
    Number { name: String, value: String },
    #[error(transparent)]
    Size(#[from] SizeError),
    #[error("the hook {} has a timeout of {seconds} s: it must be more than 0", path.display())]
    HookTimeout { path: PathBuf, seconds: i64 },
    /// Something that ends at the border of a VM.
    #[error("{what} cannot be used in a VM: {why}")]
    Refused { what: String, why: &'static str },
}

/// The annotation that tells the agent where on the host the bundle is, for the state that `startContainer` hooks are given.
const BUNDLE_ANNOTATION: &str = "husk.bundle";

/// Splits the `config.json` of container `id`, which lies in `bundle`.
pub(crate) fn split(
    config: &[u8],
    id: &str,
    bundle: &Path,
    look: LookAtMemory<'_>,
) -> Result<Split, SpecError> {
    let (mut spec, asked) = parse(config)?;
    check(&spec)?;
    let mut host = HostPart {
        rootfs: rootfs_path(&spec)?,
        terminal: has_terminal(&spec),
        hostname: spec.hostname().clone(),
        annotations: spec
            .annotations()
            .clone()
            .unwrap_or_default()
            .into_iter()
            .collect(),
        hooks: refuse::hooks(&spec)?,
        ..HostPart::default()
    };
    host.sandbox = member::sandbox(&host.annotations, id)?;
    if let Some(linux) = spec.linux() {
        host.shared = refuse::namespaces(linux)?;
        host.network = refuse::network_of(linux);
        check_hostname(&spec, linux)?;
        host.cgroups_path = linux.cgroups_path().clone();
        if let Some(resources) = linux.resources() {
            host.demand = Demand::of(resources);
        }
    }
    host.demand.asked = vm::annotated(&host.annotations, asked)?;
    let share = Path::new(SHARE_DIR).join(id);
    if let Some(root) = spec.root_mut() {
        root.set_path(share.join("rootfs"));
    }
    let own_map = spec.linux().as_ref().and_then(id_map::of_container);
    let look = |source: &Path| look(&bundle.join(source));
    for mount in spec.mounts_mut().iter_mut().flatten() {
        if !memory::take(mount, &look) {
            take_bind(mount, &share, own_map.as_ref(), &mut host.binds)?;
        }
    }
    if let Some(process) = spec.process_mut() {
        drop_labels(process);
    }
    let hooks = guests_hooks(&spec);
    if hooks.is_some() {
        let mut annotations = spec.annotations().clone().unwrap_or_default();
        annotations.insert(BUNDLE_ANNOTATION.to_owned(), bundle.display().to_string());
        spec.set_annotations(Some(annotations));
    }
    spec.set_hooks(hooks);
    if let Some(linux) = spec.linux_mut() {
        linux.set_mount_label(None);
        if let Some(resources) = linux.resources_mut() {
            drop_cpu_numbers(resources);
        }
    }
    Ok(Split { guest: spec, host })
}

impl Split {
    /// The guest's configuration as JSON, with namespaces that its kernel has already.
    pub(crate) fn guest_json(
        mut self,
        joined: &[(LinuxNamespaceType, PathBuf)],
    ) -> Result<Vec<u8>, SpecError> {
        let linux = self.guest.linux_mut().as_mut();
        let namespaces = linux.and_then(|linux| linux.namespaces_mut().as_mut());
        for namespace in namespaces.into_iter().flatten() {
            let path = joined.iter().find(|(kind, _)| *kind == namespace.typ());
            namespace.set_path(path.map(|(_, path)| path.clone()));
        }
        serde_json::to_vec(&self.guest).map_err(SpecError::Write)
    }
}

/// The process of an exec, an OCI `process` object, made fit for the guest. With it, whether it has a terminal.
pub(crate) fn exec_process(json: &[u8]) -> Result<(Vec<u8>, bool), SpecError> {
    let mut process = read_process(json)?;
    check_process(&process)?;
    drop_labels(&mut process);
    let terminal = process.terminal().unwrap_or(false);
    Ok((
        serde_json::to_vec(&process).map_err(SpecError::Write)?,
        terminal,
    ))
}

/// Reads an OCI `process` object as leniently as runc does.
pub(crate) fn read_process(json: &[u8]) -> Result<Process, SpecError> {
    let mut process: Value = serde_json::from_slice(json).map_err(SpecError::Parse)?;
    warn_of_unknown(&capability::drop_unknown(&mut process));
    defaults::complete_process(&mut process);
    serde_json::from_value(process).map_err(SpecError::Parse)
}

/// The `process` of a configuration, which was checked when its container was made.
pub(crate) fn process_of(config: &[u8]) -> Result<Process, SpecError> {
    let (spec, _) = parse(config)?;
    spec.process().clone().ok_or(SpecError::Missing("process"))
}

/// The limits of an update, an OCI `linux.resources` object, made fit for the guest. With it, what they demand of the VM.
pub(crate) fn resources(json: &[u8]) -> Result<(Demand, Vec<u8>), SpecError> {
    let mut resources: LinuxResources =
        serde_json::from_slice(json).map_err(SpecError::Resources)?;
    refuse::realtime(&resources)?;
    resources.set_devices(None);
    drop_cpu_numbers(&mut resources);
    Ok((
        Demand::of(&resources),
        serde_json::to_vec(&resources).map_err(SpecError::Write)?,
    ))
}

/// The CPUs and memory nodes of a cpuset are those of the host, which the guest does not have.
fn drop_cpu_numbers(resources: &mut LinuxResources) {
    if let Some(cpu) = resources.cpu_mut() {
        cpu.set_cpus(None);
        cpu.set_mems(None);
    }
}

/// The configuration without its `vm` section and without capabilities that nobody knows, complete, and the size that it asks for.
fn parse(config: &[u8]) -> Result<(Spec, Asked), SpecError> {
    let asked = vm::section(config)?;
    // Read as it is, an error has its place in the file.
    let strict = match serde_json::from_slice(config) {
        Ok(spec) if asked.is_none() => return Ok((spec, Asked::default())),
        read => read.err(),
    };
    let mut sections: serde_json::Map<String, Value> =
        serde_json::from_slice(config).map_err(SpecError::Parse)?;
    sections.remove("vm");
    if let Some(process) = sections.get_mut("process") {
        warn_of_unknown(&capability::drop_unknown(process));
    }
    defaults::complete_config(&mut sections);
    match serde_json::from_value(sections.into()) {
        Ok(spec) => Ok((spec, asked.unwrap_or_default())),
        Err(error) => Err(SpecError::Parse(strict.unwrap_or(error))),
    }
}

fn warn_of_unknown(capabilities: &[String]) {
    if !capabilities.is_empty() {
        tracing::warn!(
            "capabilities that nobody knows are left out: {}",
            capabilities.join(", ")
        );
    }
}

fn check(spec: &Spec) -> Result<(), SpecError> {
    if spec.version().split('.').next() != Some("1") {
        return Err(SpecError::Version(spec.version().clone()));
    }
    let process = spec
        .process()
        .as_ref()
        .ok_or(SpecError::Missing("process"))?;
    check_process(process)?;
    if spec
        .annotations()
        .iter()
        .flatten()
        .any(|(key, _)| key.is_empty())
    {
        return Err(SpecError::Missing("the key of an annotation"));
    }
    let linux = spec.linux().as_ref().ok_or(SpecError::Missing("linux"))?;
    refuse::devices(linux)?;
    refuse::seccomp_notify(linux)?;
    refuse::host_features(linux)
}

/// Without a namespace of its own a container would name the whole VM.
fn check_hostname(spec: &Spec, linux: &Linux) -> Result<(), SpecError> {
    let named = spec
        .hostname()
        .as_ref()
        .is_some_and(|name| !name.is_empty());
    let mut namespaces = linux.namespaces().iter().flatten();
    if named && !namespaces.any(|namespace| namespace.typ() == LinuxNamespaceType::Uts) {
        return Err(SpecError::Missing(
            "the namespace of type uts that hostname needs",
        ));
    }
    Ok(())
}

fn check_process(process: &Process) -> Result<(), SpecError> {
    match process.args() {
        Some(args) if !args.is_empty() => {}
        _ => return Err(SpecError::Missing("process.args")),
    }
    if !process.cwd().is_absolute() {
        return Err(SpecError::RelativeCwd(process.cwd().clone()));
    }
    Ok(())
}

/// Those that run inside the container.
fn guests_hooks(spec: &Spec) -> Option<oci_spec::runtime::Hooks> {
    let start = spec.hooks().as_ref()?.start_container().clone()?;
    let mut hooks = oci_spec::runtime::Hooks::default();
    hooks.set_start_container(Some(start));
    Some(hooks)
}

fn rootfs_path(spec: &Spec) -> Result<PathBuf, SpecError> {
    let root = spec.root().as_ref().ok_or(SpecError::Missing("root"))?;
    if root.path().as_os_str().is_empty() {
        return Err(SpecError::Missing("root.path"));
    }
    Ok(root.path().clone())
}

fn has_terminal(spec: &Spec) -> bool {
    spec.process().as_ref().and_then(Process::terminal) == Some(true)
}

/// The guest's kernel has no AppArmor and no SELinux: labels mean the host's confinement, which the VM replaces.
fn drop_labels(process: &mut Process) {
    process.set_apparmor_profile(None);
    process.set_selinux_label(None);
}

fn is_bind(mount: &Mount) -> bool {
    let options = mount.options().as_deref().unwrap_or_default();
    let mut options = options.iter().map(String::as_str);
    mount.typ().as_deref() == Some("bind") || options.any(|name| name == "bind" || name == "rbind")
}

/// Turns a bind of the host's into one of the share's.
fn take_bind(
    mount: &mut Mount,
    share: &Path,
    own_map: Option<&IdMap>,
    binds: &mut Vec<Bind>,
) -> Result<(), SpecError> {
    let destination = Path::new("/").join(mount.destination());
    mount.set_destination(destination);
    let id_map = id_map::take(mount, own_map)?;
    let options = mount.options().clone().unwrap_or_default();
    let has = |name: &str| options.iter().any(|option| option == name);
    if !is_bind(mount) {
        return match id_map {
            Some(_) => Err(id_map::refused(mount)),
            None => Ok(()),
        };
    }
    let source = mount
        .source()
        .clone()
        .ok_or(SpecError::Missing("mounts.source"))?;
    refuse::kernel_files(&source)?;
    mount.set_source(Some(share.join("mounts").join(binds.len().to_string())));
    binds.push(Bind {
        source,
        destination: mount.destination().clone(),
        read_only: ReadOnly::of(&options),
        recursive: has("rbind"),
        follows_host: ["slave", "rslave", "shared", "rshared"]
            .into_iter()
            .any(has),
        id_map,
    });
    Ok(())
}

#[cfg(test)]
mod tests;
