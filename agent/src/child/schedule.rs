//! How the kernel is to run a process: the system calls that have no safe wrapper, and the CPUs.
//!
//! All but the personality are set from outside, by stage 1: they may ask for privileges that end where a user namespace begins, and
//! some are not passed on to a clone.

use rustix::io::Errno;
use rustix::process::Pid;
use rustix::thread::{CpuSet, sched_setaffinity};

use super::{Doing, StepError};
use crate::plan::{Schedule, Scheduler};
use crate::syscall::checked;

/// Gives the process `pid` its scheduler and its I/O priority.
pub(super) fn set(pid: i32, schedule: &Schedule) -> Result<(), StepError> {
    if let Some(scheduler) = schedule.scheduler {
        set_scheduler(pid, scheduler).doing(|| "cannot set process.scheduler".to_owned())?;
    }
    if let Some(priority) = schedule.io_priority {
        set_io_priority(pid, priority).doing(|| "cannot set process.ioPriority".to_owned())?;
    }
    Ok(())
}

/// Lets the process `pid`, this one where there is none, run on these CPUs only; on all that it may where there are none.
pub(super) fn pin(pid: Option<i32>, cpus: &[u32]) -> Result<(), StepError> {
    if cpus.is_empty() {
        return Ok(());
    }
    let mut set = CpuSet::new();
    for cpu in cpus {
        let cpu = usize::try_from(*cpu).ok();
        if let Some(cpu) = cpu.filter(|cpu| *cpu < CpuSet::MAX_CPU) {
            set.set(cpu);
        }
    }
    sched_setaffinity(pid.and_then(Pid::from_raw), &set)
        .doing(|| format!("cannot set process.execCPUAffinity to CPUs {cpus:?}"))
}

/// Sets the personality of this process.
pub(super) fn set_personality(schedule: &Schedule) -> Result<(), StepError> {
    let Some(personality) = schedule.personality else {
        return Ok(());
    };
    // SAFETY: personality(2) takes a number and touches no memory of this process.
    checked(unsafe { libc::personality(personality.into()) })
        .map(drop)
        .doing(|| "cannot set linux.personality".to_owned())
}

fn set_scheduler(pid: i32, scheduler: Scheduler) -> Result<(), Errno> {
    let attr = libc::sched_attr {
        size: u32::try_from(size_of::<libc::sched_attr>()).map_err(|_| Errno::INVAL)?,
        sched_policy: scheduler.policy,
        sched_flags: scheduler.flags,
        sched_nice: scheduler.nice,
        sched_priority: scheduler.priority,
        sched_runtime: scheduler.runtime,
        sched_deadline: scheduler.deadline,
        sched_period: scheduler.period,
    };
    // SAFETY: `attr` is a sched_attr of the size that it says; the call reads it and keeps nothing.
    checked(unsafe { libc::syscall(libc::SYS_sched_setattr, pid, &raw const attr, 0) }).map(drop)
}

fn set_io_priority(pid: i32, priority: u16) -> Result<(), Errno> {
    const IOPRIO_WHO_PROCESS: i32 = 1;
    let priority = i32::from(priority);
    // SAFETY: ioprio_set(2) takes three numbers and touches no memory of this process.
    checked(unsafe { libc::syscall(libc::SYS_ioprio_set, IOPRIO_WHO_PROCESS, pid, priority) })
        .map(drop)
}
