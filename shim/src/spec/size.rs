//! How large a VM must be, at first and when limits change (pure).
//!
//! Memory: what the bundle asks for, or else the configured size; or the container's limit and [`OVERHEAD_MIB`] for the guest's kernel
//! and agent where that is more. Memory that no process has touched costs the host nothing, so the default is generous. vCPUs: what
//! the bundle asks for; or quota / period, rounded up and never more than the host has, since more would only take turns; or
//! the configured number. A number that a person wrote down is taken as it is.
//!
//! A VM that is there grows with the limits of its containers, up to its maximum, and shrinks with them, down to what it was made with:
//!
//! ```text
//!   limits of all containers ─► Demand ... ─► VmSize::extent_for ─► Extent: memory plugged, vCPUs online
//! ```

use oci_spec::runtime::LinuxResources;
use vmm_api::MEMORY_BLOCK_MIB;

use super::vm::Asked;

/// What the guest's kernel and agent need beside a container at its limit.
const OVERHEAD_MIB: u64 = 64;

/// A guest grows by whole memory blocks of Linux: what describes one (2 MiB) is gained and lost with it.
const GROWTH_MIB: u32 = 128;

/// vCPUs to which a VM can grow when nobody says how many: each that is parked costs the guest memory and the host a thread.
const VCPUS_MAX_DEFAULT: u8 = 4;

const MIB: u64 = 1024 * 1024;

/// The kernel's period where a quota comes without one, microseconds.
const DEFAULT_PERIOD_US: u64 = 100_000;

/// What a container may use. None: nothing was said, which for an update means that it stays.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Demand {
    /// `linux.resources.memory.limit`, bytes; negative for none.
    memory_limit: Option<i64>,
    /// `linux.resources.cpu.quota`, microseconds; negative for none.
    quota: Option<i64>,
    /// `linux.resources.cpu.period`, microseconds.
    period: Option<u64>,
    /// What the bundle asks for by itself.
    pub(super) asked: Asked,
}

/// What there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct HostSize {
    pub(crate) memory_mib: u64,
    pub(crate) cpus: u8,
}

/// The size that the configuration file gives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct ConfiguredSize {
    pub(crate) memory_mib: u32,
    pub(crate) memory_max_mib: Option<u32>,
    pub(crate) vcpus: u8,
    pub(crate) vcpus_max: Option<u8>,
}

/// A VM's size: what it is made with, and how far it can go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct VmSize {
    /// At boot, and never less.
    pub(crate) memory_mib: u32,
    pub(crate) memory_max_mib: u32,
    /// Online at boot.
    pub(crate) vcpus: u8,
    pub(crate) vcpus_max: u8,
    /// When no container has a quota.
    vcpus_unlimited: u8,
}

/// How far a VM has grown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Extent {
    pub(crate) memory_mib: u32,
    /// Online.
    pub(crate) vcpus: u8,
}

/// Why no VM can be large enough.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SizeError {
    #[error("a VM of {wanted_mib} MiB is wanted, and the host has {host_mib} MiB")]
    Memory { wanted_mib: u64, host_mib: u64 },
    #[error(
        "a memory limit of {limit_mib} MiB needs a VM of {wanted_mib} MiB, and this one can have {max_mib} MiB"
    )]
    Maximum {
        limit_mib: u64,
        wanted_mib: u64,
        max_mib: u32,
    },
    #[error("a VM of {wanted_mib} MiB is wanted, and its guest stays at {guest_mib} MiB")]
    Guest { wanted_mib: u32, guest_mib: u32 },
}

impl Demand {
    /// Reads `linux.resources`. 0 says nothing, as in all of them.
    pub(crate) fn of(resources: &LinuxResources) -> Self {
        let memory = resources.memory().as_ref();
        let cpu = resources.cpu().as_ref();
        Self {
            memory_limit: memory
                .and_then(|memory| memory.limit())
                .filter(|limit| *limit != 0),
            quota: cpu.and_then(|cpu| cpu.quota()).filter(|quota| *quota != 0),
            period: cpu
                .and_then(|cpu| cpu.period())
                .filter(|period| *period != 0),
            asked: Asked::default(),
        }
    }

    /// The demand after an update.
    pub(crate) fn updated(self, change: Self) -> Self {
        Self {
            memory_limit: change.memory_limit.or(self.memory_limit),
            quota: change.quota.or(self.quota),
            period: change.period.or(self.period),
            asked: self.asked,
        }
    }

    /// The VM for this demand.
    pub(crate) fn vm_size(
        self,
        configured: ConfiguredSize,
        host: HostSize,
    ) -> Result<VmSize, SizeError> {
        let least_mib = self.asked.memory_mib.unwrap_or(configured.memory_mib);
        let limit_mib = self.limit_mib().unwrap_or(0);
        let wanted_mib = needed_mib(limit_mib).max(least_mib.into());
        let too_much = SizeError::Memory {
            wanted_mib,
            host_mib: host.memory_mib,
        };
        if wanted_mib > host.memory_mib {
            return Err(too_much);
        }
        let memory_mib = u32::try_from(wanted_mib).map_err(|_| too_much)?;
        let host_mib = u32::try_from(host.memory_mib).unwrap_or(u32::MAX);
        let memory_max_mib = self.asked.memory_max_mib.or(configured.memory_max_mib);

        let most = self.asked.vcpus_max.or(configured.vcpus_max);
        let of_quota = |cpus| at_most(cpus, most.unwrap_or(host.cpus)).max(1);
        let unlimited = self.asked.vcpus.unwrap_or(configured.vcpus);
        let vcpus = match self.asked.vcpus {
            Some(asked) => asked,
            None => self.cpus().map_or(unlimited, of_quota),
        };
        // A number that was asked for stays, unless it was also asked how far it may go.
        let default_most = match self.asked.vcpus {
            Some(asked) => asked,
            None => host.cpus.min(VCPUS_MAX_DEFAULT),
        };
        Ok(VmSize {
            memory_mib,
            memory_max_mib: memory_max_mib
                .unwrap_or(host_mib)
                .clamp(memory_mib, host_mib),
            vcpus,
            vcpus_max: most.unwrap_or(default_most).max(vcpus),
            vcpus_unlimited: unlimited,
        })
    }

    /// The memory limit, if there is one.
    fn limit_mib(self) -> Option<u64> {
        Some(positive(self.memory_limit)?.div_ceil(MIB))
    }

    /// CPUs of quota / period, rounded up, if there is a quota.
    fn cpus(self) -> Option<u64> {
        let period = self.period.unwrap_or(DEFAULT_PERIOD_US);
        Some(positive(self.quota)?.div_ceil(period))
    }
}

impl VmSize {
    /// What it is when it has booted.
    pub(crate) fn at_boot(self) -> Extent {
        Extent {
            memory_mib: self.memory_mib,
            vcpus: self.vcpus,
        }
    }

    /// How far it must go for what its containers may use together. Beyond its maximum there is no memory, but a quota is an upper bound.
    pub(crate) fn extent_for(self, demands: &[Demand]) -> Result<Extent, SizeError> {
        let limits = demands.iter().filter_map(|demand| demand.limit_mib());
        let limit_mib = limits.fold(0, u64::saturating_add);
        let quotas = demands.iter().filter_map(|demand| demand.cpus());
        let vcpus = match quotas.reduce(u64::saturating_add) {
            Some(cpus) => at_most(cpus, self.vcpus_max).max(self.vcpus.min(self.vcpus_unlimited)),
            None => self.vcpus_unlimited.min(self.vcpus_max),
        };
        Ok(Extent {
            memory_mib: self.memory_for(limit_mib)?,
            vcpus,
        })
    }

    fn memory_for(self, limit_mib: u64) -> Result<u32, SizeError> {
        let wanted_mib = needed_mib(limit_mib);
        let more_max =
            (self.memory_max_mib - self.memory_mib) / MEMORY_BLOCK_MIB * MEMORY_BLOCK_MIB;
        let max_mib = self.memory_mib + more_max;
        if wanted_mib > max_mib.into() {
            return Err(SizeError::Maximum {
                limit_mib,
                wanted_mib,
                max_mib,
            });
        }
        let more = wanted_mib.saturating_sub(self.memory_mib.into());
        let rounded = more.next_multiple_of(GROWTH_MIB.into());
        Ok(self.memory_mib + u32::try_from(rounded).unwrap_or(more_max).min(more_max))
    }
}

/// What containers at this limit and the guest around them take.
fn needed_mib(limit_mib: u64) -> u64 {
    match limit_mib {
        0 => 0,
        limit => limit.saturating_add(OVERHEAD_MIB),
    }
}

fn positive(number: Option<i64>) -> Option<u64> {
    number
        .and_then(|number| u64::try_from(number).ok())
        .filter(|number| *number > 0)
}

fn at_most(count: u64, most: u8) -> u8 {
    u8::try_from(count).unwrap_or(u8::MAX).min(most)
}

#[cfg(test)]
mod tests;
