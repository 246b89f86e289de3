//! A daemon of a case's own.

use std::io::PipeReader;
use std::process::{Child, Command, Stdio};
use std::thread::JoinHandle;

use rustix::process::{Pid, Signal, kill_process};

use crate::runtime::{collect, read_until};

/// Ended when dropped; one of a case that has failed shows its log.
#[derive(Debug)]
pub(crate) struct Daemon {
    child: Child,
    log: Option<JoinHandle<Vec<u8>>>,
}

impl Daemon {
    /// Starts it, and waits until it has said `ready`.
    pub(crate) fn start(mut command: Command, ready: &str) -> Self {
        let (mut said, log): (PipeReader, _) = std::io::pipe().unwrap();
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("the daemon is installed");
        // The command has a copy of the pipe's other end.
        drop(command);
        let mut daemon = Self { child, log: None };
        read_until(&mut said, ready);
        daemon.log = Some(collect(said));
        daemon
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // It may have ended by itself, which is then in its log.
        let _ = kill_process(Pid::from_child(&self.child), Signal::TERM);
        let _ = self.child.wait();
        let log = self.log.take().and_then(|log| log.join().ok());
        if std::thread::panicking() {
            let log = log.unwrap_or_default();
            println!("--- log of the daemon\n{}", String::from_utf8_lossy(&log));
        }
    }
}
