//! The host's record of one process: a container's init, or an exec.
//!
//! ```text
//!   creating ─► created ─► starting ─► running ─► stopped ─► (deleted)
//!      │           └──────────┬────────┬─────────────▲
//!      │             pausing ─► paused ─► resuming   │
//!      └─► undoing ─► (none)  └─► unknown ───────────┘
//! ```
//!
//! The third line is the container's and hides the first from all its processes, as [`crate::container`] tells. The last one is that of an agent
//! that did not answer in time.
//!
//! A process stops once, with the first exit that is reported: the agent's event, or 137 when the VM ends. Whoever waits
//! gets that exit, also when the record is deleted meanwhile.

use std::fmt;

use tokio::sync::watch;

use crate::state::{Status, now_ns};
use crate::stdio::{ProcessStreams, Stdio};

/// Names a process: the init of a container, or one of its execs.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ProcessKey {
    /// The container's id.
    pub(crate) container: String,
    /// The exec's id; empty for the init process.
    pub(crate) exec: String,
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Exit {
    /// Exit code, or 128 + signal.
    pub(crate) status: u32,
    /// Nanoseconds since 1970.
    pub(crate) at_ns: u64,
}

/// The status of a process whose VM ended under it: as if killed.
const LOST_STATUS: u32 = 137;

/// Where a process is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// The agent is making it.
    Creating,
    /// It waits for its start.
    Created,
    /// The agent is starting it.
    Starting,
    Running,
    /// Its container is being paused.
    Pausing,
    /// No process of its container runs.
    Paused,
    /// Its container is being resumed.
    Resuming,
    Stopped,
    /// The agent was to start it, and did not answer in time.
    Unknown,
    /// The agent was to make it, and did not answer in time: it is being removed from the guest.
    Undoing,
    /// Its output is being delivered, then it is removed.
    Deleting,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Process {
    pub(crate) phase: Phase,
    pub(crate) stdio: Stdio,
    /// While they are open.
    pub(crate) streams: Option<ProcessStreams>,
    /// It was sent SIGKILL.
    pub(crate) killed: bool,
    exit: watch::Sender<Option<Exit>>,
}

impl ProcessKey {
    /// The init process of `container`.
    pub(crate) fn init(container: &str) -> Self {
        Self {
            container: container.to_owned(),
            exec: String::new(),
        }
    }

    /// Whether it is a container's init process.
    pub(crate) fn is_init(&self) -> bool {
        self.exec.is_empty()
    }
}

impl fmt::Display for ProcessKey {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_init() {
            write!(out, "container {:?}", self.container)
        } else {
            write!(
                out,
                "exec {:?} of container {:?}",
                self.exec, self.container
            )
        }
    }
}

impl Exit {
    /// The exit of a process that went with its VM.
    pub(crate) fn lost() -> Self {
        Self {
            status: LOST_STATUS,
            at_ns: now_ns(),
        }
    }
}

impl From<Phase> for Status {
    fn from(phase: Phase) -> Self {
        match phase {
            Phase::Creating | Phase::Undoing => Self::Creating,
            Phase::Created | Phase::Starting | Phase::Unknown => Self::Created,
            Phase::Running | Phase::Pausing => Self::Running,
            Phase::Paused | Phase::Resuming => Self::Paused,
            Phase::Stopped | Phase::Deleting => Self::Stopped,
        }
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Creating => "being created",
            Self::Created => "created",
            Self::Starting => "being started",
            Self::Running => "running",
            Self::Pausing => "being paused",
            Self::Paused => "paused",
            Self::Resuming => "being resumed",
            Self::Stopped => "stopped",
            Self::Unknown => "in an unknown state",
            Self::Undoing => "being undone",
            Self::Deleting => "being deleted",
        })
    }
}

impl Process {
    /// A process the agent is about to make.
    pub(crate) fn new(stdio: Stdio) -> Self {
        Self {
            phase: Phase::Creating,
            stdio,
            streams: None,
            killed: false,
            exit: watch::Sender::new(None),
        }
    }

    /// How it ended, once it has.
    pub(crate) fn exit(&self) -> Option<Exit> {
        *self.exit.borrow()
    }

    /// To wait for the exit by.
    pub(crate) fn watch_exit(&self) -> watch::Receiver<Option<Exit>> {
        self.exit.subscribe()
    }

    /// Publishes the exit. Returns whether this was the first report of it.
    pub(crate) fn stop(&mut self, exit: Exit) -> bool {
        if self.exit().is_some() {
            return false;
        }
        if self.phase != Phase::Deleting {
            self.phase = Phase::Stopped;
        }
        if let Some(streams) = &mut self.streams {
            streams.end_input();
        }
        self.exit.send_replace(Some(exit));
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn exit_reaches_those_who_wait_even_after_the_record_is_gone() {
        let mut process = Process::new(Stdio::default());
        let mut exit = process.watch_exit();
        let reported = Exit {
            status: 7,
            at_ns: 1,
        };
        assert!(process.stop(reported));
        drop(process);
        let seen = exit.wait_for(Option::is_some).await;
        assert_eq!(seen.ok().and_then(|exit| *exit), Some(reported));
    }

    #[test]
    fn only_the_first_exit_counts() {
        let mut process = Process::new(Stdio::default());
        let first = Exit {
            status: 0,
            at_ns: 1,
        };
        assert!(process.stop(first));
        assert!(!process.stop(Exit::lost()));
        assert_eq!(process.exit(), Some(first));
        assert_eq!(process.phase, Phase::Stopped);
    }
}
