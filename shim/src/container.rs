//! The host's record of one container: its init process, its execs and its files in the share.
//!
//! ```text
//!   thawed ─► freezing ─► frozen ─► thawing ─► thawed
//! ```
//!
//! Pausing concerns all processes of a container at once, so it is kept beside their phases: what lives in a container that is not thawed
//! is seen as pausing, paused or resuming.

use std::collections::BTreeMap;
use std::path::PathBuf;

use tokio::sync::watch;

use crate::hooks::{HookState, Hooks};
use crate::process::{Exit, Phase, Process, ProcessKey};
use crate::rootfs::ContainerFiles;
use crate::spec::{Demand, HostPart};
use crate::state::{ContainerRecord, Status, now_ns};
use crate::stdio::{LeftOutputs, Stdio};

/// Execs one container may have at a time: a bound on what a caller that never deletes them can pile up.
pub(crate) const EXECS_MAX: usize = 1024;

/// See the module.
#[derive(Debug)]
pub(crate) struct Container {
    pub(crate) bundle: PathBuf,
    pub(crate) init: Process,
    pub(crate) execs: BTreeMap<String, Process>,
    /// Outputs of execs that are gone.
    pub(crate) left_outputs: LeftOutputs,
    /// While they are in the share.
    pub(crate) files: Option<ContainerFiles>,
    /// Whether there has been a container.
    pub(crate) is_made: bool,
    /// The process of this host that stands for it, if it is a member of another's sandbox.
    pub(crate) stand_in: Option<i32>,
    /// Its init process in the guest, once there is one.
    pub(crate) guest_pid: Option<u32>,
    /// Whether its program has said that it is ready, if it is to say so.
    pub(crate) ready: Option<watch::Sender<bool>>,
    pub(crate) freezer: Freezer,
    /// What it may use of the VM.
    pub(crate) demand: Demand,
    rootfs: PathBuf,
    hooks: Hooks,
    annotations: BTreeMap<String, String>,
    pub(crate) created_ns: u64,
}

/// Whether the processes may run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Freezer {
    Thawed,
    Freezing,
    Frozen,
    Thawing,
}

impl Container {
    /// A container that is about to be made.
    pub(crate) fn new(bundle: PathBuf, stdio: Stdio, host: &HostPart) -> Self {
        Self {
            rootfs: bundle.join(&host.rootfs),
            bundle,
            init: Process::new(stdio),
            execs: BTreeMap::new(),
            left_outputs: LeftOutputs::default(),
            files: None,
            is_made: false,
            stand_in: None,
            guest_pid: None,
            ready: None,
            freezer: Freezer::Thawed,
            demand: host.demand,
            hooks: host.hooks.clone(),
            annotations: host.annotations.clone(),
            created_ns: now_ns(),
        }
    }

    /// The process named by `key`, whose container this is.
    pub(crate) fn process(&self, key: &ProcessKey) -> Option<&Process> {
        if key.is_init() {
            Some(&self.init)
        } else {
            self.execs.get(&key.exec)
        }
    }

    /// The same, to change it.
    pub(crate) fn process_mut(&mut self, key: &ProcessKey) -> Option<&mut Process> {
        if key.is_init() {
            Some(&mut self.init)
        } else {
            self.execs.get_mut(&key.exec)
        }
    }

    /// Where a process is in its life, its container's freezer considered.
    pub(crate) fn phase(&self, process: &Process) -> Phase {
        match (process.phase, self.freezer) {
            (Phase::Created | Phase::Running, Freezer::Freezing) => Phase::Pausing,
            (Phase::Created | Phase::Running, Freezer::Frozen) => Phase::Paused,
            (Phase::Created | Phase::Running, Freezer::Thawing) => Phase::Resuming,
            (phase, _) => phase,
        }
    }

    /// Whether a process was killed whose end is still to be heard of.
    pub(crate) fn is_dying(&self) -> bool {
        std::iter::once(&self.init)
            .chain(self.execs.values())
            .any(|process| process.killed && process.exit().is_none())
    }

    /// Whether it was made, and its init process has exited.
    pub(crate) fn is_over(&self) -> bool {
        self.is_made && self.init.exit().is_some()
    }

    /// Every process is gone. Returns those whose end this is, execs first.
    pub(crate) fn lose(&mut self, id: &str, exit: Exit) -> Vec<ProcessKey> {
        let mut lost = Vec::new();
        for (exec, process) in &mut self.execs {
            if process.stop(exit) {
                lost.push(ProcessKey {
                    container: id.to_owned(),
                    exec: exec.clone(),
                });
            }
        }
        if self.init.stop(exit) {
            lost.push(ProcessKey::init(id));
        }
        lost
    }

    /// Its hooks, and the state to give them.
    pub(crate) fn hooks(&self, id: &str, status: Status, pid: i32) -> (Hooks, HookState) {
        let mut state = HookState::new(id, status, pid, &self.bundle);
        state.annotations.clone_from(&self.annotations);
        (self.hooks.clone(), state)
    }

    /// What the state file says of it.
    pub(crate) fn record(&self, id: &str) -> ContainerRecord {
        ContainerRecord {
            id: id.to_owned(),
            bundle: self.bundle.clone(),
            rootfs: self.rootfs.clone(),
            status: self.phase(&self.init).into(),
            created_ns: self.created_ns,
            exit_status: self.init.exit().map(|exit| exit.status),
            annotations: self.annotations.clone(),
            poststop: self.hooks.poststop.clone(),
            stand_in: self.stand_in,
        }
    }
}
