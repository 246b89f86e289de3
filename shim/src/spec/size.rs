//! How large a VM must be (pure).
//!
//! Memory: what the bundle asks for, or else the configured size; or the container's limit and [`OVERHEAD_MIB`] for the guest's kernel
//! and agent where that is more. Memory that no process has touched costs the host nothing, so the default is generous. vCPUs: what
//! the bundle asks for; or quota / period, rounded up and never more than the host has, since more would only take turns; or
//! the configured number. A number that a person wrote down is taken as it is.

use oci_spec::runtime::LinuxResources;

use super::vm::Asked;

/// What the guest's kernel and agent need beside a container at its limit.
const OVERHEAD_MIB: u64 = 64;

const MIB: u64 = 1024 * 1024;

/// The kernel's period where a quota comes without one, microseconds.
const DEFAULT_PERIOD_US: u64 = 100_000;

/// What a container may use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Demand {
    /// `linux.resources.memory.limit`, bytes.
    memory_limit: Option<u64>,
    /// CPUs of quota / period, rounded up.
    cpus: Option<u64>,
    /// What the bundle asks for by itself.
    pub(super) asked: Asked,
}

/// What there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct HostSize {
    pub(crate) memory_mib: u64,
    pub(crate) cpus: u8,
}

/// A VM's size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct VmSize {
    pub(crate) memory_mib: u32,
    pub(crate) vcpus: u8,
}

/// Why no VM can be large enough.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SizeError {
    #[error("a VM of {wanted_mib} MiB is wanted, and the host has {host_mib} MiB")]
    Memory { wanted_mib: u64, host_mib: u64 },
    #[error(
        "a memory limit of {limit_mib} MiB needs a VM of {wanted_mib} MiB, and this one was created with {vm_mib} MiB"
    )]
    Fixed {
        limit_mib: u64,
        wanted_mib: u64,
        vm_mib: u32,
    },
}

impl Demand {
    /// Reads `linux.resources`; numbers that mean "unlimited" are no demand.
    pub(crate) fn of(resources: &LinuxResources) -> Self {
        let limit = resources
            .memory()
            .as_ref()
            .and_then(|memory| memory.limit());
        let cpu = resources.cpu().as_ref();
        let quota = cpu.and_then(|cpu| cpu.quota());
        let period = cpu
            .and_then(|cpu| cpu.period())
            .filter(|period| *period > 0)
            .unwrap_or(DEFAULT_PERIOD_US);
        let positive = |number: i64| u64::try_from(number).ok().filter(|number| *number > 0);
        Self {
            memory_limit: limit.and_then(positive),
            cpus: quota.and_then(positive).map(|quota| quota.div_ceil(period)),
            asked: Asked::default(),
        }
    }

    /// The VM for this demand; `least` is its size when nothing is demanded.
    pub(crate) fn vm_size(self, least: VmSize, host: HostSize) -> Result<VmSize, SizeError> {
        let configured = self.asked.memory_mib.unwrap_or(least.memory_mib);
        let wanted_mib = self.needed_mib().max(configured.into());
        let too_much = SizeError::Memory {
            wanted_mib,
            host_mib: host.memory_mib,
        };
        if wanted_mib > host.memory_mib {
            return Err(too_much);
        }
        let memory_mib = u32::try_from(wanted_mib).map_err(|_| too_much)?;
        let of_quota = |cpus| u8::try_from(cpus).unwrap_or(u8::MAX).min(host.cpus).max(1);
        let vcpus = self
            .asked
            .vcpus
            .or(self.cpus.map(of_quota))
            .unwrap_or(least.vcpus);
        Ok(VmSize { memory_mib, vcpus })
    }

    /// Whether a VM of that size can give what is demanded. CPUs are not looked at: a quota is an upper bound.
    pub(crate) fn check_fits(self, vm: VmSize) -> Result<(), SizeError> {
        let wanted_mib = self.needed_mib();
        if wanted_mib > vm.memory_mib.into() {
            return Err(SizeError::Fixed {
                limit_mib: wanted_mib - OVERHEAD_MIB,
                wanted_mib,
                vm_mib: vm.memory_mib,
            });
        }
        Ok(())
    }

    /// What a container at its limit and the guest around it take.
    fn needed_mib(self) -> u64 {
        self.memory_limit
            .map_or(0, |bytes| bytes.div_ceil(MIB).saturating_add(OVERHEAD_MIB))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEAST: VmSize = VmSize {
        memory_mib: 512,
        vcpus: 1,
    };
    const HOST: HostSize = HostSize {
        memory_mib: 4096,
        cpus: 4,
    };

    fn demand(resources: &str) -> Demand {
        Demand::of(&serde_json::from_str(resources).unwrap())
    }

    fn size(resources: &str) -> Result<(u32, u8), SizeError> {
        demand(resources)
            .vm_size(LEAST, HOST)
            .map(|size| (size.memory_mib, size.vcpus))
    }

    #[test]
    fn no_limits_give_the_configured_size() {
        assert_eq!(size("{}"), Ok((512, 1)));
        assert_eq!(
            size(r#"{"memory":{"limit":-1},"cpu":{"quota":-1,"period":100000}}"#),
            Ok((512, 1))
        );
    }

    #[test]
    fn memory_limit_is_what_the_container_gets() {
        assert_eq!(
            size(r#"{"memory":{"limit":1073741824}}"#),
            Ok((1024 + 64, 1))
        );
        assert_eq!(size(r#"{"memory":{"limit":1048577}}"#), Ok((512, 1)));
    }

    #[test]
    fn quota_is_rounded_up_to_whole_cpus() {
        assert_eq!(
            size(r#"{"cpu":{"quota":50000,"period":100000}}"#),
            Ok((512, 1))
        );
        assert_eq!(
            size(r#"{"cpu":{"quota":150000,"period":100000}}"#),
            Ok((512, 2))
        );
        assert_eq!(size(r#"{"cpu":{"quota":300000}}"#), Ok((512, 3)));
        assert_eq!(size(r#"{"cpu":{"quota":300000,"period":0}}"#), Ok((512, 3)));
    }

    #[test]
    fn no_more_cpus_than_the_host_has() {
        assert_eq!(
            size(r#"{"cpu":{"quota":9900000,"period":100000}}"#),
            Ok((512, 4))
        );
    }

    #[test]
    fn what_the_bundle_asks_for_is_taken_as_it_is() {
        let asked = |memory_mib, vcpus, resources| {
            let mut demand = demand(resources);
            demand.asked = Asked { memory_mib, vcpus };
            let size = demand.vm_size(LEAST, HOST).unwrap();
            (size.memory_mib, size.vcpus)
        };
        assert_eq!(asked(Some(128), None, "{}"), (128, 1));
        assert_eq!(
            asked(Some(128), None, r#"{"memory":{"limit":209715200}}"#),
            (264, 1)
        );
        assert_eq!(
            asked(None, Some(16), r#"{"cpu":{"quota":300000}}"#),
            (512, 16)
        );
    }

    #[test]
    fn a_configured_number_of_vcpus_is_not_capped() {
        let least = VmSize { vcpus: 32, ..LEAST };
        assert_eq!(demand("{}").vm_size(least, HOST).unwrap().vcpus, 32);
    }

    #[test]
    fn a_limit_that_the_vm_cannot_give_is_told_in_numbers() {
        let fits = |limit: u64| {
            let resources = format!(r#"{{"memory":{{"limit":{limit}}}}}"#);
            demand(&resources)
                .check_fits(LEAST)
                .map_err(|e| e.to_string())
        };
        assert_eq!(fits(448 * MIB), Ok(()));
        assert_eq!(
            fits(512 * MIB).unwrap_err(),
            "a memory limit of 512 MiB needs a VM of 576 MiB, and this one was created with 512 MiB"
        );
        assert_eq!(
            demand(r#"{"memory":{"limit":-1}}"#).check_fits(LEAST),
            Ok(())
        );
    }

    #[test]
    fn more_memory_than_the_host_has_is_an_error() {
        let error = size(r#"{"memory":{"limit":8589934592}}"#).unwrap_err();
        assert_eq!(
            error.to_string(),
            "a VM of 8256 MiB is wanted, and the host has 4096 MiB"
        );
        assert!(size(r#"{"memory":{"limit":9223372036854775807}}"#).is_err());
    }
}
