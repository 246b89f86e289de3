//! The configuration of one virtual machine: one JSON document, read once, before the VMM jails itself.
//!
//! Paths are the host's, as the supervisor sees them; all of them are opened before the jail is entered. Numbers that
//! make no sense are refused by the VMM with the field's name.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Memory beyond that of the boot is plugged and unplugged in blocks of this size.
pub const MEMORY_BLOCK_MIB: u32 = 2;

/// Everything a VMM must know to build and boot its machine.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct VmConfig {
    /// Names the machine for people who read its configuration; the VMM makes nothing of it.
    pub id: String,
    /// How many vCPUs there are and how many are online at boot.
    pub cpus: Cpus,
    /// Guest memory at boot, MiB.
    pub memory_mib: u32,
    /// What it can grow to ([`crate::Command::Resize`]), MiB, counted in whole blocks of [`MEMORY_BLOCK_MIB`] beyond `memory_mib`. 0, or no more than
    /// `memory_mib`: it cannot.
    #[serde(default)]
    pub memory_max_mib: u32,
    /// An uncompressed ELF `vmlinux`.
    pub kernel: PathBuf,
    /// An uncompressed cpio archive with `/init`.
    pub initrd: PathBuf,
    /// Words for the kernel command line, after the machine's own. Words for PID 1 go after a `--`.
    #[serde(default)]
    pub cmdline: Vec<String>,
    /// The socket device.
    pub vsock: Vsock,
    /// The directory served to the guest by virtio-fs. None: no virtio-fs device.
    #[serde(default)]
    pub share: Option<Share>,
    /// How the VMM confines itself before the first guest instruction.
    #[serde(default)]
    pub jail: Jail,
}

/// vCPU counts. `boot <= max`.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Cpus {
    /// Online when the kernel has booted.
    pub boot: u8,
    /// Created; those beyond `boot` stay parked until the agent brings them online.
    pub max: u8,
}

/// The virtio-vsock device: its host end is the control socket ([`crate::Command::Connect`], [`crate::Event::Accepted`]).
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Vsock {
    /// The guest's context id, 3 or more.
    pub cid: u32,
    /// Host ports the guest may dial, each once; a dial to any other port, and any later one, is
    /// reset.
    pub host_ports: Vec<u32>,
}

/// A directory served to the guest.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Share {
    /// The directory. Mounts that appear below it later are seen by the guest.
    pub root: PathBuf,
    /// The name by which the guest mounts it, at most 36 bytes.
    pub tag: String,
}

/// Confinement. All on by default; a switch exists so that a developer can attach a debugger. With
/// the first two the VMM must be the first process of a PID namespace.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Jail {
    /// Own mount namespace with the shared directory (or an empty one) as root, only the capabilities that serving files needs.
    pub enabled: bool,
    /// A system call filter per thread.
    pub seccomp: bool,
    /// An empty network namespace of its own. Off when the supervisor has placed the VMM in a pod's.
    pub own_network: bool,
}

impl Default for Jail {
    fn default() -> Self {
        Self {
            enabled: true,
            seccomp: true,
            own_network: true,
        }
    }
}
