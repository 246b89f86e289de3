//! One process of a container: its init or an exec.
//!
//! ```text
//!            ready              go              program has begun
//! (none) ─► Creating ─► Created ─► Starting ─────────────► Running ─(exit)─► Stopped
//!               │           │          ├─(exit)─► held until Started is answered
//!               │           └─(killed)─┼────────────────────────────────────► Stopped
//!               └─(set-up fails,       └─(program cannot be executed)───────► Stopped
//!                  or is killed)
//! ```
//!
//! An exec has no process before it is started: it goes from Created to Creating with the spawn, and waits for nothing when it is ready. A
//! process has its id from early in Creating on: the set-up looks at files of the container's, and may have to be killed.
//! The kernel's exit status decides, whatever the streams do.

use std::os::fd::OwnedFd;
use std::sync::Weak;

use tokio::io::unix::AsyncFd;

use crate::child::console;
use crate::plan::WindowSize;
use crate::sandbox::Window;

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

    /// The process is there.
    pub(crate) fn spawned(&mut self, pid: i32) {
        self.pid = Some(pid);
    }

    /// The master of its terminal, which the pump keeps.
    pub(crate) fn set_terminal(&mut self, terminal: Option<Weak<AsyncFd<OwnedFd>>>) {
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

    /// Its status, where it has ended and nobody was told yet.
    pub(crate) fn untold(&self) -> Option<u32> {
        match self.state {
            State::StartingEnded(status) => Some(status),
            _ => None,
        }
    }

    /// Whether there is a process to signal. Once it has ended its id may be another's.
    pub(crate) fn is_alive(&self) -> bool {
        self.pid.is_some()
            && matches!(
                self.state,
                State::Creating | State::Created | State::Starting | State::Running
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

    /// Sets the terminal's size, where it says something, and its mode; false where there is no terminal any more.
    pub(crate) fn resize(&self, window: Window) -> rustix::io::Result<bool> {
        let Some(terminal) = self.terminal.as_ref().and_then(Weak::upgrade) else {
            return Ok(false);
        };
        let master = terminal.get_ref();
        if window.keep_newlines {
            console::keep_newlines(master)?;
        }
        let WindowSize { width, height } = window.size;
        if window.size != WindowSize::default() {
            let size = rustix::termios::Winsize {
                ws_row: height,
                ws_col: width,
                ws_xpixel: 0,
                ws_ypixel: 0,
            };
            rustix::termios::tcsetwinsize(master, size)?;
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exit_is_published_once_the_start_is_answered() {
        let mut process = Process::new(State::Created);
        process.spawned(7);
        process.set_state(State::Starting);
        assert_eq!(process.exited(3), Exited::Hold);
        assert_eq!(process.started(), Some(3));
        assert_eq!(process.state(), State::Stopped);
    }

    #[test]
    fn a_running_process_publishes_its_exit_at_once() {
        let mut process = Process::new(State::Starting);
        process.spawned(7);
        assert_eq!(process.started(), None);
        assert_eq!(process.exited(0), Exited::Publish);
        assert_eq!(process.state(), State::Stopped);
    }

    #[test]
    fn a_process_is_pending_until_its_exit_and_its_start_are_told() {
        let mut process = Process::new(State::Created);
        assert!(!process.is_pending(), "an exec before its start");
        process.spawned(7);
        assert!(process.is_pending());
        process.set_state(State::Starting);
        process.exited(0);
        assert!(process.is_pending() && !process.is_alive());
        process.started();
        assert!(!process.is_pending());
    }

    #[test]
    fn a_process_that_ends_while_it_is_made_is_told_with_its_creation() {
        let mut process = Process::new(State::Creating);
        assert!(!process.is_alive(), "it has no id yet");
        process.spawned(7);
        assert!(process.is_alive());
        assert_eq!(process.exited(137), Exited::Hold);
        assert_eq!(process.untold(), Some(137));
        assert!(process.is_pending() && !process.is_alive());
    }

    #[test]
    fn an_ended_process_is_not_signalled() {
        let mut process = Process::new(State::Running);
        process.spawned(7);
        assert!(process.is_alive());
        process.exited(0);
        assert!(!process.is_alive());
    }
}
