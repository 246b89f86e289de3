//! How the kernel is to run a process: scheduler, I/O priority, CPUs, personality (pure).
//!
//! See `sched_setattr(2)`, `ioprio_set(2)`, `sched_setaffinity(2)` and `personality(2)` for the numbers.

use oci_spec::runtime::{
    ExecCPUAffinity, IOPriorityClass, LinuxIOPriority, LinuxPersonality, LinuxPersonalityDomain,
    LinuxSchedulerFlag, LinuxSchedulerPolicy,
};
use serde::{Deserialize, Serialize};

use super::PlanError;

/// All of them; the default changes nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Schedule {
    pub(crate) scheduler: Option<Scheduler>,
    /// Class and priority, as `ioprio_set(2)` takes them.
    pub(crate) io_priority: Option<u16>,
    /// The CPUs of a further process before it is in the container's cgroup, and then; empty: as they are.
    pub(crate) initial_cpus: Vec<u32>,
    pub(crate) cpus: Vec<u32>,
    pub(crate) personality: Option<u32>,
}

/// The arguments of `sched_setattr(2)`; times in nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Scheduler {
    pub(crate) policy: u32,
    pub(crate) flags: u64,
    pub(crate) nice: i32,
    pub(crate) priority: u32,
    pub(crate) runtime: u64,
    pub(crate) deadline: u64,
    pub(crate) period: u64,
}

/// CPUs have smaller numbers than this (the size of the set that the system call takes).
const CPUS_MAX: u32 = 1024;

pub(super) fn read(given: &oci_spec::runtime::Process) -> Result<Schedule, PlanError> {
    let affinity = given.exec_cpu_affinity().as_ref();
    let list = |of: fn(&ExecCPUAffinity) -> &Option<String>| {
        cpus(
            affinity
                .and_then(|affinity| of(affinity).as_deref())
                .unwrap_or_default(),
        )
    };
    Ok(Schedule {
        scheduler: given.scheduler().as_ref().map(scheduler).transpose()?,
        io_priority: given.io_priority().as_ref().map(io_priority).transpose()?,
        initial_cpus: list(ExecCPUAffinity::initial)?,
        cpus: list(ExecCPUAffinity::cpu_affinity_final)?,
        personality: None,
    })
}

impl Schedule {
    /// What is not given is the container's.
    #[must_use]
    pub(super) fn or(self, init: &Self) -> Self {
        let own_cpus = !self.initial_cpus.is_empty() || !self.cpus.is_empty();
        let cpus = if own_cpus { &self } else { init };
        Self {
            scheduler: self.scheduler.or(init.scheduler),
            io_priority: self.io_priority.or(init.io_priority),
            initial_cpus: cpus.initial_cpus.clone(),
            cpus: cpus.cpus.clone(),
            personality: self.personality.or(init.personality),
        }
    }
}

fn scheduler(given: &oci_spec::runtime::Scheduler) -> Result<Scheduler, PlanError> {
    use LinuxSchedulerPolicy as P;
    let policy = match given.policy() {
        P::SchedOther => 0,
        P::SchedFifo => 1,
        P::SchedRr => 2,
        P::SchedBatch => 3,
        P::SchedIdle => 5,
        P::SchedDeadline => 6,
        P::SchedIso => {
            return Err(PlanError::Unsupported {
                what: "process.scheduler.policy SCHED_ISO".to_owned(),
            });
        }
    };
    let conflict = |key: &str, why| {
        Err(PlanError::Conflict {
            what: format!("process.scheduler.{key}"),
            why,
        })
    };
    let priority = given.priority().unwrap_or(0);
    if priority != 0 && !matches!(given.policy(), P::SchedFifo | P::SchedRr) {
        return conflict("priority", "only SCHED_FIFO and SCHED_RR have one");
    }
    let nice = given.nice().unwrap_or(0);
    if nice != 0 && !matches!(given.policy(), P::SchedOther | P::SchedBatch) {
        return conflict("nice", "only SCHED_OTHER and SCHED_BATCH have one");
    }
    if !(-20..=19).contains(&nice) {
        return conflict("nice", "not between -20 and 19");
    }
    let times = [*given.runtime(), *given.deadline(), *given.period()];
    if times.iter().any(Option::is_some) && *given.policy() != P::SchedDeadline {
        return conflict("runtime, deadline, period", "only SCHED_DEADLINE has them");
    }
    let [runtime, deadline, period] = times.map(Option::unwrap_or_default);
    Ok(Scheduler {
        policy,
        flags: given
            .flags()
            .iter()
            .flatten()
            .fold(0, |flags, given| flags | flag(*given)),
        nice,
        priority: u32::try_from(priority).map_err(|_| PlanError::Invalid {
            what: "process.scheduler.priority",
            value: priority.to_string(),
        })?,
        runtime,
        deadline,
        period,
    })
}

fn flag(flag: LinuxSchedulerFlag) -> u64 {
    use LinuxSchedulerFlag as F;
    match flag {
        F::SchedResetOnFork => 0x01,
        F::SchedFlagReclaim => 0x02,
        F::SchedFlagDLOverrun => 0x04,
        F::SchedFlagKeepPolicy => 0x08,
        F::SchedFlagKeepParams => 0x10,
        F::SchedFlagUtilClampMin => 0x20,
        F::SchedFlagUtilClampMax => 0x40,
    }
}

fn io_priority(given: &LinuxIOPriority) -> Result<u16, PlanError> {
    let class: u16 = match given.class() {
        IOPriorityClass::IoprioClassRt => 1,
        IOPriorityClass::IoprioClassBe => 2,
        IOPriorityClass::IoprioClassIdle => 3,
    };
    match u16::try_from(given.priority()) {
        Ok(priority @ 0..=7) => Ok(class << 13 | priority),
        _ => Err(PlanError::Invalid {
            what: "process.ioPriority.priority",
            value: given.priority().to_string(),
        }),
    }
}

/// `0-3,7`, without repetition.
fn cpus(list: &str) -> Result<Vec<u32>, PlanError> {
    let invalid = || PlanError::Invalid {
        what: "process.execCPUAffinity",
        value: list.to_owned(),
    };
    let number = |text: &str| {
        let number = text.trim().parse::<u32>().ok();
        number.filter(|cpu| *cpu < CPUS_MAX).ok_or_else(invalid)
    };
    let mut cpus = std::collections::BTreeSet::new();
    for range in list.split(',').filter(|range| !range.trim().is_empty()) {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last) = (number(first)?, number(last)?);
        if first > last {
            return Err(invalid());
        }
        cpus.extend(first..=last);
    }
    Ok(cpus.into_iter().collect())
}

/// `linux.personality`.
pub(super) fn personality(given: &LinuxPersonality) -> Result<u32, PlanError> {
    let flags = given.flags().iter().flatten();
    if let Some(flag) = flags.clone().next() {
        return Err(PlanError::Unsupported {
            what: format!("linux.personality.flags {flag:?}"),
        });
    }
    Ok(match given.domain() {
        LinuxPersonalityDomain::PerLinux => 0,
        LinuxPersonalityDomain::PerLinux32 => 8,
    })
}
