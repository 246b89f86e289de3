//! From nothing to an agent that answers.
//!
//! ```text
//!   size ─► cgroup ─► VMM spawned ··· kernel boots ··· agent dials ─► configured, events subscribed ─► ready
//!           (a turn: quick)            (a task of its own, while the first container's files are prepared)
//! ```
//!
//! Ways to fail: the host is too small, the VMM cannot run, the guest ends while it boots, or the agent does not dial
//! before the deadline; the last two show the console's last lines.

use std::future::Future;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use agent_api::{PORT_CONTROL, SHARE_TAG};
use rustix::time::{ClockId, clock_gettime};
use tokio::sync::{Mutex, mpsc, watch};
use vmm_api::{Cpus, Event, Jail, VmConfig, Vsock};

use super::clock::{self, ClockJumps};
use super::{Handle, HostPart, Machine, ReportedPid, Sandbox, Standstill};
use crate::agent::{Agent, AgentError, GuestEvents};
use crate::cgroup::{self, Cgroup, CgroupError};
use crate::deadlines::END_FOLLOWS;
use crate::guest::budget::{LogBudget, Verdict};
use crate::guest::events::GuestEvent;
use crate::network::Namespace;
use crate::process::{Exit, ProcessKey};
use crate::spec::{HostSize, SizeError, SpecError, VmSize};
use crate::state::now_ns;
use crate::vm::{Arrived, SpawnError, Vm, VmEnd};

/// Console lines shown when the agent does not dial.
const LAST_LINES: usize = 12;

/// The longest name `sethostname(2)` takes.
const HOSTNAME_MAX_BYTES: usize = 64;

/// The guest's address; each VM has a vsock of its own, so all guests have the same.
const GUEST_CID: u32 = 3;

/// Why there is no VM with an agent.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BootError {
    #[error(transparent)]
    Network(#[from] SpecError),
    #[error(transparent)]
    Size(#[from] SizeError),
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    #[error(transparent)]
    Spawn(#[from] SpawnError),
    #[error("{0}")]
    Ended(Arc<VmEnd>),
    #[error(
        "the agent did not answer within {} s: {progress}; from its console:\n{console}",
        after.as_secs()
    )]
    Deadline {
        after: Duration,
        progress: String,
        console: String,
    },
    #[error("the agent was lost while it was set up")]
    Agent(#[from] AgentError),
}

impl Sandbox {
    /// Starts the VM for a container's demands, unless there is one.
    pub(super) fn machine_or_boot(&mut self, host: &HostPart) -> Result<Machine, BootError> {
        if let Some(machine) = &self.machine {
            return Ok(machine.clone());
        }
        let network = host.network.as_deref().map(Namespace::open).transpose()?;
        let size = host.demand.vm_size(self.config.size, host_size())?;
        let cgroup = cgroup::make(host.cgroups_path.as_deref(), &self.state)?;
        if let (Some(cgroup), None) = (&cgroup, &host.cgroups_path) {
            cgroup.limit_memory(size.memory_max_mib.into());
        }
        if let (Some(cgroup), ReportedPid::Supervisor(_)) = (&cgroup, &self.reported_pid) {
            self.home = cgroup.adopt(self.this.pid);
        }
        let config = self.vm_config(size, host);
        let spawned = Vm::spawn(&self.config.vmm, &config, cgroup.as_ref(), network.as_ref());
        let (vm, events) = match spawned {
            Ok(spawned) => spawned,
            Err(e) => {
                self.leave_cgroup(cgroup.as_ref());
                return Err(e.into());
            }
        };
        tracing::debug!(pid = vm.process.pid, ?size, "the VMM is started");
        let (ready, agent) = watch::channel(None);
        let setup = Setup {
            vm: vm.clone(),
            hostname: hostname(host.hostname.as_deref().unwrap_or(&self.id)),
            deadline: self.config.agent_timeout,
            handle: self.handle.clone(),
        };
        tokio::spawn(async move {
            let agent = setup.bring_up(events).await;
            ready.send_replace(Some(agent.map_err(Arc::new)));
        });
        let (watched, handle) = (vm.clone(), self.handle.clone());
        tokio::spawn(async move {
            let end = watched.ended().await;
            handle.tell(move |sandbox| sandbox.on_vm_end(&end));
        });
        let pid = match self.reported_pid {
            ReportedPid::Vmm => vm.process.pid,
            ReportedPid::Supervisor(_) => self.this.pid,
        };
        let standstill = Standstill::new(vm.control.clone(), self.handle.clone());
        let machine = Machine {
            vm,
            size,
            extent: Arc::new(Mutex::new(size.at_boot())),
            pid,
            cgroup,
            standstill,
            agent,
        };
        // Before the agent is told the time, so that no jump is missed.
        match ClockJumps::watch() {
            Ok(jumps) => drop(tokio::spawn(clock::follow(machine.clone(), jumps))),
            Err(error) => tracing::warn!("the host's clock cannot be watched: {error}"),
        }
        self.machine = Some(machine.clone());
        Ok(machine)
    }

    /// Removes the cgroup, in which nothing but the supervisor is any more. Returns whether it is gone.
    pub(super) fn leave_cgroup(&self, cgroup: Option<&Cgroup>) -> bool {
        cgroup.is_none_or(|cgroup| cgroup.release(self.this.pid, self.home.as_ref()))
    }

    fn vm_config(&self, size: VmSize, host: &HostPart) -> VmConfig {
        VmConfig {
            id: self.id.clone(),
            cpus: Cpus {
                boot: size.vcpus,
                max: size.vcpus_max,
            },
            memory_mib: size.memory_mib,
            memory_max_mib: size.memory_max_mib,
            kernel: self.config.kernel.clone(),
            initrd: self.config.initrd.clone(),
            cmdline: Vec::new(),
            vsock: Vsock {
                cid: GUEST_CID,
                host_ports: vec![PORT_CONTROL],
            },
            share: Some(vmm_api::Share {
                root: self.share.root().to_owned(),
                tag: SHARE_TAG.to_owned(),
            }),
            jail: Jail {
                own_network: host.network.is_none(),
                ..Jail::default()
            },
        }
    }
}

/// What the booting task needs.
struct Setup {
    vm: Vm,
    hostname: String,
    deadline: Duration,
    handle: Handle,
}

impl Setup {
    /// Waits for the agent and makes the guest its own. The VM does not outlive a failure.
    async fn bring_up(self, events: mpsc::Receiver<Arrived>) -> Result<Agent, BootError> {
        let result = self.try_bring_up(events).await;
        if result.is_err() {
            self.vm.kill();
        }
        result
    }

    async fn try_bring_up(&self, events: mpsc::Receiver<Arrived>) -> Result<Agent, BootError> {
        let agent = Agent::over(self.dialled(events).await?)?;
        tracing::debug!("the agent dialled");
        let both = async { tokio::try_join!(agent.configure(&self.hostname), agent.events()) };
        let ((), events) = self.unless_ended(both).await?;
        tokio::spawn(forward(events, self.handle.clone(), self.vm.clone()));
        tracing::debug!("the guest is set up");
        if tracing::enabled!(tracing::Level::DEBUG) {
            self.log_milestones().await;
        }
        Ok(agent)
    }

    /// Writes to a debugging log when the VMM and the kernel passed their milestones, as microseconds before the line's own time.
    async fn log_milestones(&self) {
        let Ok(stats) = self.vm.control.stats().await else {
            // Its end is told elsewhere.
            return;
        };
        let now = clock_gettime(ClockId::Monotonic);
        let now_ns = u64::try_from(now.tv_sec).unwrap_or_default() * 1_000_000_000
            + u64::try_from(now.tv_nsec).unwrap_or_default();
        for mark in stats.timeline {
            let ago_us = now_ns.saturating_sub(mark.at_ns) / 1000;
            let exits = mark.kvm_exits;
            tracing::debug!(ago_us, exits, "milestone of the VMM: {}", mark.name);
        }
    }

    /// The connection that the agent dials.
    async fn dialled(&self, events: mpsc::Receiver<Arrived>) -> Result<OwnedFd, BootError> {
        tokio::select! {
            stream = accepted(events) => Ok(stream),
            end = self.vm.ended() => Err(BootError::Ended(end)),
            () = tokio::time::sleep(self.deadline) => Err(BootError::Deadline {
                after: self.deadline,
                progress: self.progress().await,
                console: self.vm.console.last_lines(LAST_LINES),
            }),
        }
    }

    /// How far a guest came that hangs, in words.
    async fn progress(&self) -> String {
        match self.vm.control.stats().await {
            Ok(stats) => {
                let last = stats.timeline.last().map_or("none", |mark| &mark.name);
                let exits = stats.kvm_exits.unwrap_or(stats.user_exits);
                format!("its last milestone is {last}, it has left guest mode {exits} times")
            }
            Err(error) => error.to_string(),
        }
    }

    /// When a call fails because the VM ended, that is the reason to be told.
    async fn unless_ended<T>(
        &self,
        call: impl Future<Output = Result<T, AgentError>>,
    ) -> Result<T, BootError> {
        match call.await {
            Ok(value) => Ok(value),
            Err(error) => match tokio::time::timeout(END_FOLLOWS, self.vm.ended()).await {
                Ok(end) => Err(BootError::Ended(end)),
                Err(_) => Err(error.into()),
            },
        }
    }
}

/// The first connection to the agent's port: the agent dials once, whatever else a guest does. Never ready when the VM goes first.
pub(super) async fn accepted(mut events: mpsc::Receiver<Arrived>) -> OwnedFd {
    let mut lines = LogBudget::new();
    while let Some(arrived) = events.recv().await {
        match (arrived.event, arrived.fd) {
            (Event::Accepted { port: PORT_CONTROL }, Some(stream)) => {
                tokio::spawn(refuse(events));
                return stream;
            }
            (event, _) => {
                if let Verdict::Write { left_out } = lines.line() {
                    tracing::debug!(left_out, "the VMM says {event:?}");
                }
            }
        }
    }
    std::future::pending().await
}

/// Closes every other connection to the agent's port, whoever in the guest has dialled: only the first one is the agent's.
async fn refuse(mut events: mpsc::Receiver<Arrived>) {
    let mut is_told = false;
    while let Some(arrived) = events.recv().await {
        if matches!(arrived.event, Event::Accepted { .. }) && !is_told {
            is_told = true;
            tracing::warn!("the guest dials again, and is not listened to");
        }
    }
}

/// Makes turns of the agent's events. Their end is the agent's, which is the VM's.
pub(super) async fn forward(mut events: GuestEvents, handle: Handle, vm: Vm) {
    while let Some((event, credit)) = events.next().await {
        // The credit is back when the turn is over: the guest does not fill the owner's mailbox.
        match event {
            GuestEvent::Exit {
                container,
                exec,
                status,
                at_ns,
                carried,
            } => {
                let key = ProcessKey { container, exec };
                // No exit is in the future, whatever the guest's clock says.
                let at_ns = at_ns.min(now_ns());
                let exit = Exit { status, at_ns };
                handle.tell(move |sandbox| {
                    sandbox.on_exit(&key, exit, carried);
                    drop(credit);
                });
            }
            GuestEvent::Ready { container } => handle.tell(move |sandbox| {
                sandbox.on_ready(&container);
                drop(credit);
            }),
            GuestEvent::Oom { container } => handle.tell(move |sandbox| {
                sandbox.on_oom(container);
                drop(credit);
            }),
        }
    }
    if let Some(violation) = events.violation() {
        vm.give_up(violation.to_string());
    } else if tokio::time::timeout(END_FOLLOWS, vm.ended()).await.is_err() {
        vm.give_up("its agent was lost while it ran on");
    }
}

/// The VM's name: `name`, as far as a kernel takes it.
fn hostname(name: &str) -> String {
    name.chars()
        .filter(char::is_ascii)
        .take(HOSTNAME_MAX_BYTES)
        .collect()
}

fn host_size() -> HostSize {
    let info = rustix::system::sysinfo();
    let bytes = info.totalram.saturating_mul(info.mem_unit.into());
    let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    HostSize {
        memory_mib: bytes / (1024 * 1024),
        cpus: u8::try_from(cpus).unwrap_or(u8::MAX),
    }
}
