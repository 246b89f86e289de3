//! One container: its cgroup, its processes, and what of its specification later processes need.
//!
//! ```text
//! (none) ── create ─► creating ─► created ── start ─► running ─(init exits)─► stopped
//!                        │           │                                           │
//!                        └─(fails)───┴──────────────── delete ───────────────────┴─► ending ─► (none)
//! ```
//!
//! While it is created or running it can be paused, and while it is being made it can be deleted, too. The state is that of its init process;
//! *ending* is where everything is killed and the cgroup waits to be empty.

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use tokio::task::AbortHandle;

use crate::cgroup::Cgroup;
use crate::plan::{self, Entry, IdMap, IdMaps, Namespaces, Plan};
use crate::process::{Process, State};
use crate::sandbox::{NotifySocket, Reply, SandboxError};
use crate::signal;
use crate::spawn::{Maker, SpawnError, Spawning};
use crate::stdio::{ChildStdio, Meters};
use crate::streams::Claim;

/// Between two memory events of one container.
const OOM_INTERVAL: Duration = Duration::from_secs(1);

/// A container and its processes.
#[derive(Debug)]
pub(crate) struct Container {
    pub(crate) cgroup: Cgroup,
    /// Which namespaces a further process has to join.
    pub(crate) namespaces: Namespaces,
    /// Whether the kernel kills everybody with the first process: it is the first of a pid namespace.
    pub(crate) has_own_pids: bool,
    id_maps: Option<IdMaps>,
    /// The first process as it was planned; further ones take over from it.
    pub(crate) template: plan::Process,
    /// Names the first process for those who join it.
    pub(crate) pidfd: Option<OwnedFd>,
    /// By exec id; the first process has the empty one.
    pub(crate) members: HashMap<String, Member>,
    /// Processes killed for memory, as far as they were told.
    oom_kills: u64,
    oom_told: Option<Instant>,
    pub(crate) freezer: Freezer,
    /// By which its program says that it is ready.
    pub(crate) notify: Option<NotifySocket>,
    pub(crate) ending: Option<Ending>,
}

/// Whether a container stands still.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Freezer {
    Thawed,
    Freezing,
    Frozen,
}

/// A process of the container, and what belongs to its present step.
#[derive(Debug)]
pub(crate) struct Member {
    pub(crate) process: Process,
    /// Of an exec that was not started yet.
    pub(crate) waiting: Option<Waiting>,
    /// Of a first process that was not started yet.
    pub(crate) spawning: Option<Spawning>,
    /// To be sent to the terminal's master when it comes.
    pub(crate) terminal: Option<Claim>,
    /// How much it has put out.
    pub(crate) outputs: Meters,
    /// Who waits for the present step.
    pub(crate) reply: Option<Reply<u32>>,
    /// Makes the process, which is not there yet.
    pub(crate) maker: Option<Maker>,
    /// Was to be killed before there was a process.
    pub(crate) killed: bool,
    /// Why there will be no program; told when the process has ended.
    pub(crate) failed: Option<SpawnError>,
    /// Who waits for it to be gone.
    pub(crate) deleted: Option<Reply<()>>,
}

/// An exec before its start.
#[derive(Debug)]
pub(crate) struct Waiting {
    pub(crate) plan: plan::Process,
    pub(crate) stdio: ChildStdio,
    /// The cgroup that was asked for.
    pub(crate) cgroup: Option<PathBuf>,
}

/// A container that is on its way out.
#[derive(Debug)]
pub(crate) struct Ending {
    pub(crate) then: Then,
    /// Nothing is waited for any more after this.
    pub(crate) deadline: Instant,
    /// No process is in its cgroup, or that cannot be known.
    pub(crate) emptied: Option<io::Result<()>>,
    /// Looks at the cgroup and at the clock.
    pub(crate) _watch: Watch,
}

/// A task that ends with its container's ending.
#[derive(Debug)]
pub(crate) struct Watch(pub(crate) AbortHandle);

impl Drop for Watch {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Who is told when the container is gone, and what.
#[derive(Debug)]
pub(crate) enum Then {
    Deleted(Reply<()>),
    Failed(Option<Reply<u32>>, SandboxError),
}

impl Member {
    pub(crate) fn new(state: State) -> Self {
        Self {
            process: Process::new(state),
            waiting: None,
            spawning: None,
            terminal: None,
            outputs: Meters::default(),
            reply: None,
            maker: None,
            killed: false,
            failed: None,
            deleted: None,
        }
    }

    /// Kills a process that is being made, whether it is there already or not.
    pub(crate) fn kill_unready(&mut self) {
        if self.process.state() != State::Creating {
            return;
        }
        self.killed = true;
        match (self.process.pid(), &self.maker) {
            (Some(pid), _) => {
                // It may have ended already; as long as it is in this state it is not reaped.
                let _ = signal::send(pid, signal::KILL);
            }
            (None, Some(maker)) => maker.kill(),
            (None, None) => {}
        }
    }
}

impl Container {
    /// A container that is being made from its plan, with no process yet.
    pub(crate) fn new(cgroup: Cgroup, plan: &Plan) -> Self {
        let (namespaces, fresh, id_maps) = match &plan.entry {
            Entry::Create(container) => (
                container.namespaces(),
                container.unshare,
                container.id_maps.clone(),
            ),
            Entry::Join(namespaces) => (*namespaces, Namespaces::default(), None),
        };
        Self {
            cgroup,
            namespaces,
            has_own_pids: fresh.contains(Namespaces::PID),
            id_maps,
            template: plan.process.clone(),
            pidfd: None,
            members: HashMap::new(),
            oom_kills: 0,
            oom_told: None,
            freezer: Freezer::Thawed,
            notify: None,
            ending: None,
        }
    }

    /// Kills every process, those that are being made too.
    pub(crate) fn kill(&mut self) -> io::Result<()> {
        for member in self.members.values_mut() {
            member.kill_unready();
        }
        self.cgroup.kill()
    }

    /// The state of its first process.
    pub(crate) fn init_state(&self) -> State {
        let init = self.members.get("");
        init.map_or(State::Stopped, |init| init.process.state())
    }

    /// Who a process of the container is outside it: the owner of its pipes.
    pub(crate) fn owner(&self, process: &plan::Process) -> (u32, u32) {
        match &self.id_maps {
            None => (process.uid, process.gid),
            // What is not mapped cannot be set up, and is refused then.
            Some(maps) => (
                IdMap::outside(&maps.uids, process.uid).unwrap_or(0),
                IdMap::outside(&maps.gids, process.gid).unwrap_or(0),
            ),
        }
    }

    /// Whether there is still something to hear of one of its processes.
    pub(crate) fn is_pending(&self) -> bool {
        self.members
            .values()
            .any(|member| member.process.is_pending())
    }

    /// Whether the kernel has killed for memory and the host does not know. Kills are told one by one at exits, and otherwise not more
    /// often than every [`OOM_INTERVAL`]: a container can make as many as it likes.
    pub(crate) fn oom_to_tell(&mut self, now: Instant, at_exit: bool) -> bool {
        let lately = self
            .oom_told
            .is_some_and(|told| now.duration_since(told) < OOM_INTERVAL);
        // Without the memory controller there is no such file, and no such kill.
        let kills = self.cgroup.oom_kills().unwrap_or(0);
        if kills <= self.oom_kills || (lately && !at_exit) {
            return false;
        }
        self.oom_kills = kills;
        self.oom_told = Some(now);
        true
    }
}
