//! `linux.resources` as writes to files of a cgroup of version 2 (pure).
//!
//! The specification speaks of version 1 in places; its values are converted as the cgroup documents and every other runtime do:
//! CPU shares of 2 to 262144 become a weight of 1 to 10000, a weight of block I/O of 10 to 1000 becomes one of 1 to 10000, and the limit
//! on memory and swap together becomes one on swap alone. What version 2 has no file for and no other runtime minds (kernel memory,
//! swappiness, the OOM killer's switch, network classes) is left out with a warning.
//!
//! Fails where a value has no meaning, or contradicts another; the message names the key.

use std::fmt::Display;

use oci_spec::runtime::{
    LinuxBlockIo, LinuxCpu, LinuxDeviceCgroup, LinuxHugepageLimit, LinuxMemory, LinuxResources,
    LinuxThrottleDevice,
};
use serde::{Deserialize, Serialize};

use super::PlanError;

/// All that a specification's resources ask for.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Limits {
    /// In the order in which they are to be written.
    pub(crate) writes: Vec<Limit>,
    /// The device rules; none where nothing is said of resources.
    pub(crate) devices: Option<Vec<LinuxDeviceCgroup>>,
    /// Keys that have no effect in a guest.
    pub(crate) ignored: Vec<String>,
}

/// One write to a file of the cgroup.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Limit {
    /// What the specification calls it.
    pub(crate) key: String,
    pub(crate) file: String,
    pub(crate) value: String,
    /// Says nothing where the kernel does not have the file.
    pub(crate) optional: bool,
}

/// What holds for the cgroup now, as far as a new limit depends on it. The default is a new cgroup.
#[derive(Clone, Debug, Default)]
pub(crate) struct Present {
    /// The quota of `cpu.max`, a number or "max".
    pub(crate) cpu_quota: Option<String>,
    /// `memory.max` in bytes; none where it is unlimited.
    pub(crate) memory_max: Option<i64>,
    /// `memory.current` in bytes.
    pub(crate) memory_current: i64,
}

/// What the kernel calls no limit.
const MAX: &str = "max";
/// Of `cpu.max`, in microseconds: the kernel's own default.
const CPU_PERIOD_DEFAULT: u64 = 100_000;

impl Limits {
    fn add(&mut self, key: &str, file: impl Into<String>, value: impl Display) {
        self.writes.push(Limit {
            key: key.to_owned(),
            file: file.into(),
            value: value.to_string(),
            optional: false,
        });
    }

    /// Has no effect where the kernel does not have the file.
    fn add_optional(&mut self, key: &str, file: impl Into<String>, value: impl Display) {
        self.add(key, file, value);
        if let Some(write) = self.writes.last_mut() {
            write.optional = true;
        }
    }

    fn ignore(&mut self, key: &str, given: bool) {
        if given {
            self.ignored.push(key.to_owned());
        }
    }
}

/// Reads `linux.resources`.
pub(crate) fn read(given: &LinuxResources, present: &Present) -> Result<Limits, PlanError> {
    let mut limits = Limits {
        devices: Some(given.devices().clone().unwrap_or_default()),
        ..Limits::default()
    };
    if let Some(cpu) = given.cpu() {
        read_cpu(cpu, present, &mut limits)?;
    }
    if let Some(memory) = given.memory() {
        read_memory(memory, present, &mut limits)?;
    }
    if let Some(pids) = given.pids() {
        let limit = match pids.limit() {
            // The kernel would let nobody in at all.
            0 => "1".to_owned(),
            limit @ 1.. => limit.to_string(),
            _ => MAX.to_owned(),
        };
        limits.add("pids.limit", "pids.max", limit);
    }
    if let Some(block_io) = given.block_io() {
        read_block_io(block_io, &mut limits)?;
    }
    for limit in given.hugepage_limits().iter().flatten() {
        read_huge_pages(limit, &mut limits)?;
    }
    for (device, limit) in given.rdma().iter().flatten() {
        let mut line = device.clone();
        for (name, value) in [
            ("hca_handle", limit.hca_handles()),
            ("hca_object", limit.hca_objects()),
        ] {
            if let Some(value) = value {
                line.push_str(&format!(" {name}={value}"));
            }
        }
        limits.add("rdma", "rdma.max", line);
    }
    let network = given.network().as_ref();
    limits.ignore(
        "linux.resources.network",
        network.is_some_and(|network| {
            network.class_id().is_some_and(|class| class != 0) || network.priorities().is_some()
        }),
    );
    // Last, because it speaks of the files themselves.
    for (file, value) in given.unified().iter().flatten() {
        if file.contains('/') || !file.contains('.') || file.contains('\0') {
            return Err(PlanError::Invalid {
                what: "linux.resources.unified",
                value: file.clone(),
            });
        }
        limits.add("unified", file.clone(), value);
    }
    Ok(limits)
}

fn read_cpu(cpu: &LinuxCpu, present: &Present, limits: &mut Limits) -> Result<(), PlanError> {
    if cpu.realtime_runtime().unwrap_or(0) != 0 || cpu.realtime_period().unwrap_or(0) != 0 {
        return Err(PlanError::Unsupported {
            what: "linux.resources.cpu.realtimeRuntime or realtimePeriod".to_owned(),
        });
    }
    if let Some(idle) = cpu.idle() {
        limits.add("cpu.idle", "cpu.idle", idle);
    }
    // The kernel takes no weight for a cgroup that is to be idle.
    if let Some(shares) = cpu
        .shares()
        .filter(|shares| *shares != 0 && cpu.idle() != Some(1))
    {
        limits.add("cpu.shares", "cpu.weight", weight_of(shares));
    }
    if cpu.burst().is_some() {
        // No quota can be set that is below the burst there is.
        limits.add("cpu.burst", "cpu.max.burst", 0);
    }
    let quota = match cpu.quota() {
        None | Some(0) => None,
        Some(quota @ 1..) => Some(quota.to_string()),
        Some(_) => Some(MAX.to_owned()),
    };
    let period = cpu.period().filter(|period| *period != 0);
    match (quota, period) {
        (None, None) => {}
        // The period stays.
        (Some(quota), None) if present.cpu_quota.is_some() => {
            limits.add("cpu.quota", "cpu.max", quota);
        }
        (quota, period) => {
            let quota = quota.or_else(|| present.cpu_quota.clone());
            let quota = quota.as_deref().unwrap_or(MAX);
            let period = period.unwrap_or(CPU_PERIOD_DEFAULT);
            limits.add("cpu.quota", "cpu.max", format_args!("{quota} {period}"));
        }
    }
    if let Some(burst) = cpu.burst().filter(|burst| *burst != 0) {
        limits.add("cpu.burst", "cpu.max.burst", burst);
    }
    for (key, file, value) in [
        ("cpu.cpus", "cpuset.cpus", cpu.cpus()),
        ("cpu.mems", "cpuset.mems", cpu.mems()),
    ] {
        if let Some(value) = value.as_ref().filter(|value| !value.is_empty()) {
            limits.add(key, file, value);
        }
    }
    Ok(())
}

/// Shares of version 1 as a weight of version 2: a curve through the smallest, the default and the largest of both.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "the curve stays between 1 and 10000"
)]
fn weight_of(shares: u64) -> u64 {
    const SHARES_MAX: u32 = 262_144;
    let shares = u32::try_from(shares).unwrap_or(SHARES_MAX);
    let log = f64::from(shares.clamp(2, SHARES_MAX)).log2();
    let exponent = (log * log + 125.0 * log) / 612.0 - 7.0 / 34.0;
    (10f64.powf(exponent).ceil() as u64).clamp(1, 10_000)
}

fn read_memory(
    memory: &LinuxMemory,
    present: &Present,
    limits: &mut Limits,
) -> Result<(), PlanError> {
    let bytes = |what, value: Option<i64>| match value {
        Some(value) if value < -1 => Err(PlanError::Invalid {
            what,
            value: value.to_string(),
        }),
        value => Ok(value.filter(|value| *value != 0)),
    };
    let limit = bytes("linux.resources.memory.limit", memory.limit())?;
    let swap = bytes("linux.resources.memory.swap", memory.swap())?;
    let low = bytes("linux.resources.memory.reservation", memory.reservation())?;
    if memory.check_before_update() == Some(true) {
        for (key, limit) in [("limit", limit), ("swap", swap)] {
            if limit.is_some_and(|limit| limit > 0 && limit <= present.memory_current) {
                return Err(PlanError::Conflict {
                    what: format!("linux.resources.memory.{key}"),
                    why: "below what is used now, and checkBeforeUpdate is given",
                });
            }
        }
    }
    let text = |value| match value {
        -1 => MAX.to_owned(),
        value => i64::to_string(&value),
    };
    if let Some(swap) = swap_alone(limit, swap, present)? {
        limits.add("memory.swap", "memory.swap.max", text(swap));
        // A kernel without swap has none to limit.
        if let Some(write) = limits.writes.last_mut() {
            write.optional = swap <= 0;
        }
    }
    if let Some(limit) = limit {
        limits.add("memory.limit", "memory.max", text(limit));
    }
    if let Some(low) = low {
        limits.add("memory.reservation", "memory.low", text(low));
    }
    limits.ignore(
        "linux.resources.memory.kernel",
        memory.kernel().is_some_and(|kernel| kernel != 0),
    );
    limits.ignore(
        "linux.resources.memory.kernelTCP",
        memory.kernel_tcp().is_some_and(|kernel| kernel != 0),
    );
    limits.ignore(
        "linux.resources.memory.swappiness",
        memory.swappiness().is_some(),
    );
    limits.ignore(
        "linux.resources.memory.disableOOMKiller",
        memory.disable_oom_killer() == Some(true),
    );
    Ok(())
}

/// The limit on swap, out of one on memory and swap together; none where swap is left as it is.
fn swap_alone(
    limit: Option<i64>,
    both: Option<i64>,
    present: &Present,
) -> Result<Option<i64>, PlanError> {
    let conflict = |why| {
        Err(PlanError::Conflict {
            what: "linux.resources.memory.swap".to_owned(),
            why,
        })
    };
    match (limit, both) {
        // Memory without a limit means swap without one, as it always has.
        (Some(-1), None) | (_, Some(-1)) => Ok(Some(-1)),
        (_, None) => Ok(None),
        (limit, Some(both)) => match limit.or(present.memory_max) {
            None | Some(-1) => conflict("cannot be limited without a limit on memory"),
            Some(limit) if both < limit => conflict("below the limit on memory, which it includes"),
            Some(limit) => Ok(Some(both - limit)),
        },
    }
}

fn read_block_io(block_io: &LinuxBlockIo, limits: &mut Limits) -> Result<(), PlanError> {
    let leaf = block_io.leaf_weight().unwrap_or(0) != 0;
    let mut devices = block_io.weight_device().iter().flatten();
    if leaf || devices.any(|device| device.leaf_weight().unwrap_or(0) != 0) {
        return Err(PlanError::Unsupported {
            what: "linux.resources.blockIO.leafWeight".to_owned(),
        });
    }
    // Weights need a scheduler that knows them; the guest's disks and shares have none, as many hosts.
    let weight = |weight: u16| 1 + u64::from(weight.saturating_sub(10)) * 9999 / 990;
    if let Some(given) = block_io.weight().filter(|weight| *weight != 0) {
        limits.add_optional("blockIO.weight", "io.weight", weight(given));
    }
    for device in block_io.weight_device().iter().flatten() {
        if let Some(given) = device.weight().filter(|weight| *weight != 0) {
            let line = format!("{}:{} {}", device.major(), device.minor(), weight(given));
            limits.add_optional("blockIO.weightDevice", "io.weight", line);
        }
    }
    let mut throttle = |key: &str, name: &str, devices: &Option<Vec<LinuxThrottleDevice>>| {
        for device in devices.iter().flatten() {
            let (major, minor, rate) = (device.major(), device.minor(), device.rate());
            let rate = if rate == 0 {
                MAX.to_owned()
            } else {
                rate.to_string()
            };
            limits.add(key, "io.max", format_args!("{major}:{minor} {name}={rate}"));
        }
    };
    throttle(
        "blockIO.throttleReadBpsDevice",
        "rbps",
        block_io.throttle_read_bps_device(),
    );
    throttle(
        "blockIO.throttleWriteBpsDevice",
        "wbps",
        block_io.throttle_write_bps_device(),
    );
    throttle(
        "blockIO.throttleReadIOPSDevice",
        "riops",
        block_io.throttle_read_iops_device(),
    );
    throttle(
        "blockIO.throttleWriteIOPSDevice",
        "wiops",
        block_io.throttle_write_iops_device(),
    );
    Ok(())
}

fn read_huge_pages(limit: &LinuxHugepageLimit, limits: &mut Limits) -> Result<(), PlanError> {
    let size = limit.page_size();
    let digits = size.trim_end_matches(|c: char| c.is_ascii_uppercase());
    let unit = &size[digits.len()..];
    let is_size = digits.parse::<u64>().is_ok_and(u64::is_power_of_two)
        && matches!(unit, "B" | "KB" | "MB" | "GB");
    if !is_size {
        return Err(PlanError::Invalid {
            what: "linux.resources.hugepageLimits.pageSize",
            value: size.clone(),
        });
    }
    let value = limit.limit();
    for file in [
        format!("hugetlb.{size}.max"),
        format!("hugetlb.{size}.rsvd.max"),
    ] {
        // Of pages of a size that the machine does not have, nobody uses too many.
        limits.add_optional("hugepageLimits", file, value);
    }
    Ok(())
}

#[cfg(test)]
mod tests;
