//! How much of the machine containers may use: all but a reserve, so that the agent can answer whatever they do.
//!
//! ```text
//! /sys/fs/cgroup               the agent, and children on their way into a container: no limit
//! └── containers               memory.max and pids.max: the machine less the reserve
//!     └── ID                   the limits of the specification
//! ```
//!
//! The machine's memory is plugged and unplugged by the host, which says nothing, but asks for something before and after it. So the limits are looked
//! at with each request. Ways to fail: the kernel does not tell, or does not take a limit.

use std::cmp::Ordering;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::log::warn;
use crate::worker::Worker;

/// Memory for the agent, for the first stages of children, and for what the kernel allocates in nobody's name. A VM is 64 MiB larger than its
/// containers' limits, of which kernel and agent take about 46 before there is a container.
const MEMORY_RESERVE: u64 = 8 << 20;
/// Of memory that was plugged, the part that describes its pages: 64 bytes for each 4096.
const DESCRIPTION_SHARE: u64 = 64;
/// Tasks for the agent, its children, and the kernel's threads, of which each CPU has about ten.
const TASKS_RESERVE: u64 = 1024;
/// Memory for each task of containers. It is the kernel's own rule for a whole machine, which it applies to the memory at boot only: stacks of 16 KiB
/// take an eighth at most.
const BYTES_PER_TASK: u64 = 8 * (16 << 10);

/// The limits of all containers together.
#[derive(Debug)]
pub(crate) struct Reserve {
    cgroup: PathBuf,
    at_start: Memory,
    /// More process ids there are not.
    ids: u64,
    /// Memory that the limits in force are for.
    total: u64,
}

/// What containers may use together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Limits {
    memory: u64,
    tasks: u64,
}

/// Of the machine, bytes.
#[derive(Clone, Copy, Debug)]
struct Memory {
    total: u64,
    free: u64,
}

impl Memory {
    fn now() -> Self {
        let info = rustix::system::sysinfo();
        let bytes = |pages: u64| pages.saturating_mul(info.mem_unit.into());
        Self {
            total: bytes(info.totalram),
            free: bytes(info.freeram),
        }
    }

    /// What containers may use when the machine has `total`, and `ids` process ids.
    fn limits(self, total: u64, ids: u64) -> Limits {
        let plugged = total.saturating_sub(self.total);
        let unplugged = self.total.saturating_sub(total);
        let memory = self
            .free
            .saturating_add(plugged - plugged / DESCRIPTION_SHARE)
            .saturating_sub(unplugged)
            .saturating_sub(MEMORY_RESERVE);
        let most = ids.saturating_sub(TASKS_RESERVE);
        let tasks = most.min(total / BYTES_PER_TASK);
        Limits { memory, tasks }
    }
}

impl Limits {
    fn write(self, cgroup: &Path) -> io::Result<()> {
        let Self { memory, tasks } = self;
        fs::write(
            "/proc/sys/kernel/threads-max",
            (tasks + TASKS_RESERVE).to_string(),
        )?;
        fs::write(cgroup.join("pids.max"), tasks.to_string())?;
        fs::write(cgroup.join("memory.max"), memory.to_string())
    }
}

impl Reserve {
    /// Limits the containers of `cgroup`, of which there is none yet.
    pub(crate) fn new(cgroup: &Path) -> io::Result<Self> {
        let ids = fs::read_to_string("/proc/sys/kernel/pid_max")?;
        let ids = ids.trim().parse().map_err(io::Error::other)?;
        let at_start = Memory::now();
        at_start.limits(at_start.total, ids).write(cgroup)?;
        Ok(Self {
            cgroup: cgroup.to_owned(),
            at_start,
            ids,
            total: at_start.total,
        })
    }

    /// Follows the machine. A lower limit makes the kernel take memory from containers, which `worker` waits for.
    pub(crate) fn renew(&mut self, worker: &Worker) {
        let total = Memory::now().total;
        let limits = self.at_start.limits(total, self.ids);
        let cgroup = self.cgroup.clone();
        let write = move || {
            if let Err(error) = limits.write(&cgroup) {
                warn!("cannot limit what containers use together: {error}");
            }
        };
        match total.cmp(&self.total) {
            Ordering::Equal => return,
            Ordering::Greater => write(),
            Ordering::Less => match worker.turn() {
                Ok(turn) => turn.give(write),
                // Tried again with the next request.
                Err(_) => return,
            },
        }
        self.total = total;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn the_limits_follow_the_machine_and_keep_the_reserve() {
        let at_start = Memory {
            total: 512 * MIB,
            free: 460 * MIB,
        };
        let limits = |total| at_start.limits(total * MIB, 32_768);
        let of = |memory, tasks| Limits {
            memory: memory * MIB,
            tasks,
        };
        assert_eq!(limits(512), of(452, 4096));
        assert_eq!(limits(640), of(452 + 126, 5120));
        assert_eq!(limits(256), of(452 - 256, 2048));
        assert_eq!(limits(0), of(0, 0));
        assert_eq!(limits(1 << 20).tasks, 32_768 - TASKS_RESERVE);
    }
}
