//! Everything of the host a machine needs, opened before the jail is entered. Later the VMM opens nothing.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use rustix::fs::{Mode, OFlags};

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
    /// `/proc/self/fd`, through which the file server reopens its own descriptors.
    pub proc_self_fd: OwnedFd,
}

impl Host {
    /// Opens what the plan names.
    pub fn open(plan: &Plan) -> Result<Self, HostError> {
        Ok(Self {
            kvm: Kvm::open(plan.cpus.max).map_err(HostError::Kvm)?,
            kernel: open(plan.kernel.clone())?,
            initrd: open(plan.initrd.clone())?,
            proc_self_fd: open_path("/proc/self/fd")?,
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

/// A descriptor that names a place and gives no access to it.
fn open_path(path: &str) -> Result<OwnedFd, HostError> {
    rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).map_err(|source| {
        HostError::Open {
            path: path.into(),
            source: source.into(),
        }
    })
}
