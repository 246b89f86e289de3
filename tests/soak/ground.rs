//! What all sandboxes of the soak stand on: the runtime, with its state on a small file system of its own.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use harness::Runtime;
use rustix::process::{Pid, Signal};
use serde_json::Value;

use crate::call::{Call, Ended};

/// Of the file system that has the state: what sandboxes need, and quickly filled.
const STATE_BYTES: usize = 1 << 20;

/// For an agent to call. Longer than a call may take before it is looked into, so that what hangs is
/// looked into while it does.
const AGENT_TIMEOUT_S: u32 = 300;

/// For a container to be put away.
const PUT_AWAY: Duration = Duration::from_secs(60);

/// See the module. Unmounted when dropped.
#[derive(Debug)]
pub(crate) struct Ground {
    runtime: Runtime,
}

impl Ground {
    pub(crate) fn new() -> Self {
        let runtime = Runtime::from_environment()
            .configured(&format!("agent_timeout_s = {AGENT_TIMEOUT_S}\n"));
        let root = runtime.root();
        fs::create_dir(&root).unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o"])
            .arg(format!("size={STATE_BYTES},mode=700"))
            .arg("husk-soak")
            .arg(&root)
            .status();
        assert!(mounted.unwrap().success());
        Self { runtime }
    }

    /// Where the state is.
    pub(crate) fn root(&self) -> PathBuf {
        self.runtime.root()
    }

    /// A call of the runtime.
    pub(crate) fn command(&self, words: &[&str]) -> Command {
        self.runtime.command(words)
    }

    /// Calls it and waits.
    pub(crate) fn call(&self, words: &[&str]) -> Ended {
        Call::start(self.command(words)).end()
    }

    /// Removes a container of a soak that has failed, as well as it can be done.
    pub(crate) fn put_away(&self, id: &str) {
        let call = Call::start(self.command(&["delete", "--force", id]));
        if !call.ends_within(PUT_AWAY) {
            call.signal(Signal::KILL);
        }
    }

    /// What `state` says of a container: its status, or nothing where it is not there.
    pub(crate) fn status(&self, id: &str) -> Option<String> {
        let state = self.call(&["state", id]);
        if state.status != 0 {
            let words = "does not exist";
            assert!(state.errors.contains(words), "state {id}: {state:?}");
            return None;
        }
        let state: Value = serde_json::from_str(&state.output).unwrap();
        state["status"].as_str().map(str::to_owned)
    }

    /// A process that the record of a container names, if it does.
    pub(crate) fn process(&self, id: &str, role: &str) -> Option<Pid> {
        let text = fs::read(self.root().join(id).join("state.json")).ok()?;
        let record: Value = serde_json::from_slice(&text).ok()?;
        let pid = record[role]["pid"].as_i64()?;
        Pid::from_raw(i32::try_from(pid).ok()?)
    }
}

impl Drop for Ground {
    fn drop(&mut self) {
        let _ = Command::new("umount")
            .arg("--lazy")
            .arg(self.root())
            .status();
    }
}
