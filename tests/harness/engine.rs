//! What an engine is to a runtime: it adopts the processes that commands leave behind and waits for them, and takes their terminals.

use std::fs::{self, File};
use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::rc::Rc;

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};
use serde_json::Value;
use tempfile::TempDir;

use crate::{Bundle, Output, Runtime, Terminal, wait};

/// An engine with one container in the background.
#[derive(Debug)]
pub struct Engine {
    /// The runtime it drives.
    pub runtime: Rc<Runtime>,
    /// The container's name.
    pub id: String,
    bundle: Bundle,
    directory: TempDir,
}

/// A process that is this one's child now, and is known by its pid file.
#[derive(Debug)]
pub struct Adopted(Pid);

impl Engine {
    /// Has nothing made yet.
    #[must_use]
    pub fn of(bundle: Bundle) -> Self {
        Self::with(Rc::new(Runtime::from_environment()), bundle)
    }

    /// With a further container of the same runtime.
    #[must_use]
    pub fn beside(other: &Self, bundle: Bundle) -> Self {
        Self::with(Rc::clone(&other.runtime), bundle)
    }

    /// With a container of this name, below a root of its own.
    #[must_use]
    pub fn named(id: &str, bundle: Bundle) -> Self {
        let mut engine = Self::of(bundle);
        engine.id = id.to_owned();
        engine
    }

    fn with(runtime: Rc<Runtime>, bundle: Bundle) -> Self {
        rustix::process::set_child_subreaper(Some(Pid::INIT)).unwrap();
        bundle.write();
        Self {
            runtime,
            id: Runtime::new_id(),
            bundle,
            directory: TempDir::new().unwrap(),
        }
    }

    /// A call whose standard output goes to a file: a container in the background keeps it.
    #[must_use]
    pub fn command(&self, words: &[&str]) -> Command {
        let mut command = self.runtime.command(words);
        let append = |name| {
            let path = self.path(name);
            File::options()
                .create(true)
                .append(true)
                .open(path)
                .unwrap()
        };
        command.stdout(append("stdout")).stderr(append("stderr"));
        command
    }

    /// Makes the container in the background by `create`, or `run --detach`, with further options.
    pub fn make(&self, verb: &[&str], options: &[&str]) -> Adopted {
        let pid_file = self.path("pid");
        let pid_path = pid_file.to_str().unwrap();
        let bundle = self.bundle.path().to_str().unwrap();
        let named = ["--bundle", bundle, "--pid-file", pid_path];
        let words = [verb, &named, options, &[&self.id]].concat();
        let status = self.command(&words).status().unwrap();
        assert!(status.success(), "{status}: {}", self.errors());
        Self::adopted(&pid_file)
    }

    /// Its container is not made, and one line with all of `parts` says why.
    #[track_caller]
    pub fn assert_not_created(&self, parts: &[&str]) {
        let bundle = self.bundle.path().to_str().unwrap();
        let words = ["create", "--bundle", bundle, &self.id];
        let status = self.command(&words).status().unwrap();
        let errors = self.errors();
        assert!(!status.success() && errors.lines().count() == 1, "{errors}");
        for part in parts {
            assert!(errors.contains(part), "{part:?} is not in {errors}");
        }
    }

    /// Executes a command in the background.
    pub fn exec(&self, options: &[&str], command: &[&str]) -> Adopted {
        let pid_file = self.path("exec-pid");
        let named = ["exec", "--detach", "--pid-file", pid_file.to_str().unwrap()];
        let words = [&named, options, &[&self.id], command].concat();
        let status = self.command(&words).status().unwrap();
        assert!(status.success(), "{status}: {}", self.errors());
        Self::adopted(&pid_file)
    }

    fn adopted(pid_file: &std::path::Path) -> Adopted {
        let pid = fs::read_to_string(pid_file).unwrap().parse().unwrap();
        Adopted(Pid::from_raw(pid).unwrap())
    }

    /// Calls a verb with the container's name and waits.
    #[must_use]
    pub fn call(&self, words: &[&str]) -> Output {
        self.runtime.call(&[words, &[&self.id]].concat())
    }

    /// The bundle of its container.
    #[must_use]
    pub fn bundle(&self) -> &Bundle {
        &self.bundle
    }

    /// Starts the created container.
    pub fn start(&self) {
        self.call(&["start"]).assert_status(0);
    }

    /// What the verb `state` says.
    #[must_use]
    pub fn state(&self) -> Value {
        self.runtime.state(&self.id)
    }

    /// Waits until the container has printed this.
    pub fn await_output(&self, text: &str) {
        wait::until_change(text, &self.path("stdout"), || self.output().contains(text));
    }

    /// What the container has printed.
    #[must_use]
    pub fn output(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.path("stdout")).unwrap()).into_owned()
    }

    /// What it, and failed calls, have printed to standard error.
    #[must_use]
    pub fn errors(&self) -> String {
        fs::read_to_string(self.path("stderr")).unwrap()
    }

    /// A file of the engine's.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Listens for a terminal.
    #[must_use]
    pub fn console(&self) -> Console {
        let path = self.path("console");
        // Of an earlier one.
        let _ = fs::remove_file(&path);
        Console {
            listener: UnixListener::bind(&path).unwrap(),
            path: path.to_str().unwrap().to_owned(),
        }
    }
}

impl Drop for Engine {
    /// A case that failed leaves nothing to those after it.
    fn drop(&mut self) {
        let mut delete = self.runtime.command(&["delete", "--force", &self.id]);
        let _ = delete.stdout(Stdio::null()).stderr(Stdio::null()).status();
    }
}

impl Adopted {
    /// Its pid.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.0.as_raw_nonzero().get()
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        kill_process(self.0, signal).unwrap();
    }

    /// Waits for its end: its exit status, or 128 + the signal that ended it.
    #[must_use]
    pub fn wait(self) -> i32 {
        let (_, status) = waitpid(Some(self.0), WaitOptions::empty())
            .unwrap()
            .unwrap();
        status
            .exit_status()
            .or_else(|| status.terminating_signal().map(|signal| 128 + signal))
            .unwrap()
    }
}

/// The socket that terminals come to.
#[derive(Debug)]
pub struct Console {
    listener: UnixListener,
    /// Where it listens.
    pub path: String,
}

impl Console {
    /// The terminal that came.
    #[must_use]
    pub fn terminal(self) -> Terminal {
        let (socket, _) = self.listener.accept().unwrap();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut rights = RecvAncillaryBuffer::new(&mut space);
        let mut name = [0; 4096];
        let mut data = [IoSliceMut::new(&mut name)];
        recvmsg(&socket, &mut data, &mut rights, RecvFlags::CMSG_CLOEXEC).unwrap();
        let Some(RecvAncillaryMessage::ScmRights(mut fds)) = rights.drain().next() else {
            panic!("no terminal came");
        };
        Terminal::behind(fds.next().unwrap())
    }
}
