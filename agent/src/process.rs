//! One process of a container: its init or an exec.
//!
//! ```text
//!            spawned            go              program has begun
//! (none) ─► Creating ─► Created ─► Starting ─────────────► Running ─(exit)─► Stopped
//!               │           │          ├─(exit)─► held until Started is answered
//!               │           └─(killed)─┼────────────────────────────────────► Stopped
//!               └─(set-up fails)       └─(program cannot be executed)───────► Stopped
//! ```
//!
//! An exec has no process before it is started: it goes from Created to Starting with the spawn, and waits for nothing then.
//! The kernel's exit status decides, whatever the streams do.

use std::os::fd::OwnedFd;
use std::sync::Weak;

use tokio::io::unix::AsyncFd;

use crate::plan::WindowSize;

/// The state of one process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    Creating,
    Created,
    Starting,
    /// Has ended with this status before its start was answered.
    StartingEnded(u32),
    Running,
    Stopped,
}

/// What is to be done about an exit.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Exited {
    /// Tell the host.
    Publish,
    /// Somebody waits for another answer first.
    Hold,
}

/// A process and its terminal.
#[derive(Debug)]
pub(crate) struct Process {
    state: State,
    pid: Option<i32>,
    terminal: Option<Weak<AsyncFd<OwnedFd>>>,
}

impl Process {
    pub(crate) fn new(state: State) -> Self {
        Self {
            state,
            pid: None,
            terminal: None,
        }
    }

    pub(crate) fn state(&self) -> State {
        self.state
    }

    pub(crate) fn set_state(&mut self, state: State) {
        self.state = state;
    }

    pub(crate) fn pid(&self) -> Option<i32> {
        self.pid
    }

    /// The process is there; `terminal` is the master of its terminal, which the pump keeps.
    pub(crate) fn spawned(&mut self, pid: i32, terminal: Option<Weak<AsyncFd<OwnedFd>>>) {
        self.pid = Some(pid);
        self.terminal = terminal;
    }

    /// The kernel has said that it ended.
    pub(crate) fn exited(&mut self, status: u32) -> Exited {
        match self.state {
            State::Starting | State::Creating => {
                self.state = State::StartingEnded(status);
                Exited::Hold
            }
            _ => {
                self.state = State::Stopped;
                Exited::Publish
            }
        }
    }

    /// The program has begun. Gives the status where it has ended too.
    pub(crate) fn started(&mut self) -> Option<u32> {
        if let State::StartingEnded(status) = self.state {
            self.state = State::Stopped;
            return Some(status);
        }
        self.state = State::Running;
        None
    }

    /// Whether there is a process to signal. Once it has ended its id may be another's.
    pub(crate) fn is_alive(&self) -> bool {
        self.pid.is_some()
            && matches!(
                self.state,
                State::Created | State::Starting | State::Running
            )
    }

    /// Whether there is still something to hear of it: an exit, or the end of a step.
    pub(crate) fn is_pending(&self) -> bool {
        let in_step = matches!(
            self.state,
            State::Creating | State::Starting | State::StartingEnded(_)
        );
        in_step || self.is_alive()
    }

    /// Whether the host may delete it.
    pub(crate) fn is_deletable(&self) -> bool {
        matches!(self.state, State::Created | State::Stopped)
    }

    /// Sizes the terminal; false where there is none any more.
    pub(crate) fn resize(&self, size: WindowSize) -> rustix::io::Result<bool> {
        let Some(terminal) = self.terminal.as_ref().and_then(Weak::upgrade) else {
            return Ok(false);
        };
        let size = rustix::termios::Winsize {
            ws_row: size.height,
            ws_col: size.width,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        rustix::termios::tcsetwinsize(terminal.get_ref(), size)?;
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exit_is_published_once_the_start_is_answered() {
        let mut process = Process::new(State::Created);
        process.spawned(7, None);
        process.set_state(State::Starting);
        assert_eq!(process.exited(3), Exited::Hold);
        assert_eq!(process.started(), Some(3));
        assert_eq!(process.state(), State::Stopped);
    }

    #[test]
    fn a_running_process_publishes_its_exit_at_once() {
        let mut process = Process::new(State::Starting);
        process.spawned(7, None);
        assert_eq!(process.started(), None);
        assert_eq!(process.exited(0), Exited::Publish);
        assert_eq!(process.state(), State::Stopped);
    }

    #[test]
    fn only_created_and_stopped_processes_can_be_deleted() {
        for (state, deletable) in [
            (State::Creating, false),
            (State::Created, true),
            (State::Starting, false),
            (State::Running, false),
            (State::Stopped, true),
        ] {
            assert_eq!(Process::new(state).is_deletable(), deletable, "{state:?}");
        }
    }

    #[test]
    fn a_process_is_pending_until_its_exit_and_its_start_are_told() {
        let mut process = Process::new(State::Created);
        assert!(!process.is_pending(), "an exec before its start");
        process.spawned(7, None);
        assert!(process.is_pending());
        process.set_state(State::Starting);
        process.exited(0);
        assert!(process.is_pending() && !process.is_alive());
        process.started();
        assert!(!process.is_pending());
    }

    #[test]
    fn an_ended_process_is_not_signalled() {
        let mut process = Process::new(State::Running);
        process.spawned(7, None);
        assert!(process.is_alive());
        process.exited(0);
        assert!(!process.is_alive());
    }
}
