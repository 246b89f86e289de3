//! What is dear to make and can be used by one case after another: an engine's storage with its image,
//! and its daemon. `HUSK_SHARED` names the folder for it, which belongs to cases that run one after
//! another; without it each case makes its own, and takes it away.
//!
//! ```text
//!   made by the first ─► ready ─┬─ a case has it ─┬─ removes its containers ─► ready … ended by hack/lib/run-cases
//!                               │                 └─ fails, or is killed ─► made anew by the next
//! ```

use std::env;
use std::fs::{self, File};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::wait;

/// There for as long as nobody has it.
const READY: &str = "ready";
/// The process id of the daemon.
const PID: &str = "daemon-pid";
/// What the daemon says.
const LOG: &str = "daemon-log";
/// What is shown of it when a case has failed.
const SHOWN_MAX: usize = 20_000;

/// A folder, and the daemon that works in it.
#[derive(Debug)]
pub(crate) struct Shared {
    path: PathBuf,
    /// Of a case that is by itself.
    own: Option<TempDir>,
    daemon: Option<Pid>,
}

impl Shared {
    /// The folder of that name: as an earlier case has left it, or made.
    pub(crate) fn new(name: &str, make: impl FnOnce(&mut Self)) -> Self {
        let Some(folder) = env::var_os("HUSK_SHARED") else {
            let own = TempDir::new().unwrap();
            let mut shared = Self {
                path: own.path().to_owned(),
                own: Some(own),
                daemon: None,
            };
            make(&mut shared);
            return shared;
        };
        let path = Path::new(&folder).join(name);
        let pid = fs::read_to_string(path.join(PID)).unwrap_or_default();
        let mut shared = Self {
            daemon: pid.parse().ok().and_then(Pid::from_raw),
            own: None,
            path,
        };
        if fs::remove_file(shared.path.join(READY)).is_err() {
            shared.discard();
            fs::create_dir_all(&shared.path).unwrap();
            make(&mut shared);
        }
        shared
    }

    /// Gives it to the next case, clean.
    pub(crate) fn release(&self) {
        if !thread::panicking() {
            File::create(self.path.join(READY)).unwrap();
        }
    }

    /// A file in it.
    pub(crate) fn at(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Starts the daemon, and waits until it has said `ready`. It has a process group of its own: what
    /// ends the case does not end it.
    pub(crate) fn start(&mut self, mut command: Command, ready: &str) {
        let log = self.at(LOG);
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(&log).unwrap())
            .process_group(0)
            .spawn();
        let pid = Pid::from_child(&child.expect("the daemon is installed"));
        fs::write(self.at(PID), pid.as_raw_nonzero().to_string()).unwrap();
        self.daemon = Some(pid);
        wait::until_change(ready, &log, || {
            let said = fs::read(&log).unwrap();
            let said = String::from_utf8_lossy(&said);
            assert!(lives(pid), "the daemon has ended: {said}");
            said.contains(ready)
        });
    }

    /// Ends the daemon and takes everything away.
    fn discard(&mut self) {
        if let Some(pid) = self.daemon.take() {
            // It may have ended by itself.
            let _ = kill_process(pid, Signal::TERM);
            wait::until_end(pid);
        }
        // Podman keeps it mounted.
        let overlay = self.at("storage/overlay");
        let _ = Command::new("umount").arg(overlay).output();
        if self.own.is_none() && fs::remove_dir_all(&self.path).is_err() {
            // Something is mounted there, or it was not there.
            let aside = format!("broken-{}", std::process::id());
            let _ = fs::rename(&self.path, self.path.with_file_name(aside));
        }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        if thread::panicking() {
            let log = fs::read(self.at(LOG)).unwrap_or_default();
            let shown = &log[log.len().saturating_sub(SHOWN_MAX)..];
            println!("--- log of the daemon\n{}", String::from_utf8_lossy(shown));
        }
        if thread::panicking() || self.own.is_some() {
            self.discard();
        }
    }
}

/// What a command says that always says the same: asked once for all cases that share a folder.
pub(crate) fn kept(name: &str, ask: impl FnOnce() -> Vec<u8>) -> Vec<u8> {
    let Some(folder) = env::var_os("HUSK_SHARED") else {
        return ask();
    };
    let path = Path::new(&folder).join(name);
    fs::read(&path).unwrap_or_else(|_| {
        let text = ask();
        // All of it or nothing, should the case end here.
        let new = path.with_extension("new");
        fs::write(&new, &text).unwrap();
        fs::rename(new, path).unwrap();
        text
    })
}

/// Whether it has not ended; a child that has is a zombie.
fn lives(pid: Pid) -> bool {
    let stat = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero()));
    stat.is_ok_and(|stat| !stat.contains(") Z "))
}
