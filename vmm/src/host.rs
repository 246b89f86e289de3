//! Everything of the host a machine needs, opened before the jail is entered. Later the VMM opens nothing.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use rustix::fs::CWD;
use rustix::mount::{OpenTreeFlags, open_tree};

use crate::config::Plan;
use crate::kvm::{Kvm, KvmError};

/// Why a machine's files could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// KVM.
    #[error("kvm")]
    Kvm(#[source] KvmError),
    /// A file.
    #[error("open {}", path.display())]
    Open {
        /// Its path.
        path: PathBuf,
        /// The host's reason.
        #[source]
        source: io::Error,
    },
}

/// Open files.
#[derive(Debug)]
pub struct Host {
    /// `/dev/kvm`.
    pub kvm: Kvm,
    /// The kernel.
    pub kernel: File,
    /// The initrd.
    pub initrd: File,
    /// `/proc/self/fd`, through which the file server reopens its own descriptors, and nothing else
    /// of `/proc`.
    pub proc_self_fd: OwnedFd,
}

impl Host {
    /// Opens what the plan names.
    pub fn open(plan: &Plan) -> Result<Self, HostError> {
        Ok(Self {
            kvm: Kvm::open(plan.cpus.max).map_err(HostError::Kvm)?,
            kernel: open(plan.kernel.clone())?,
            initrd: open(plan.initrd.clone())?,
            proc_self_fd: own_descriptors()?,
        })
    }
}

/// Memory of the host, MiB.
#[must_use]
pub fn memory_mib() -> u64 {
    let info = rustix::system::sysinfo();
    (info.totalram * u64::from(info.mem_unit)) >> 20
}

fn open(path: PathBuf) -> Result<File, HostError> {
    File::open(&path).map_err(|source| HostError::Open { path, source })
}

/// This process's directory of descriptors, as a mount of its own that is attached nowhere: it is
/// its own parent, so that no `..` leads from it to the rest of `/proc`.
pub fn own_descriptors() -> Result<OwnedFd, HostError> {
    const PATH: &str = "/proc/self/fd";
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    open_tree(CWD, PATH, flags).map_err(|source| HostError::Open {
        path: PATH.into(),
        source: source.into(),
    })
}
