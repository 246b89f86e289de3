//! The runtime under test, as a user calls it, with a state directory of its own per case.

use std::env;
use std::ffi::OsStr;
use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc;
use std::thread::{self, JoinHandle};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

use crate::output::captured;
use crate::shared::kept;
use crate::wait::DEADLINE;
use crate::{Bundle, Output, Remains, Terminal};

static NEXT_ID: AtomicU32 = AtomicU32::new(1);

/// An OCI runtime with its own root directory and log.
#[derive(Debug)]
pub struct Runtime {
    executable: PathBuf,
    directory: TempDir,
    options: Vec<String>,
}

impl Runtime {
    /// The runtime that `HUSK_RUNTIME` names, by default husk from the built tree `HUSK_TREE`.
    #[must_use]
    pub fn from_environment() -> Self {
        let executable = if Self::is_husk() {
            let tree = env::var_os("HUSK_TREE").expect("HUSK_TREE names the built tree");
            Path::new(&tree).join("bin/husk")
        } else {
            "runc".into()
        };
        Self {
            executable,
            directory: TempDir::new().unwrap(),
            options: Vec::new(),
        }
    }

    /// Whether husk is under test, and not the reference.
    #[must_use]
    pub fn is_husk() -> bool {
        env::var_os("HUSK_RUNTIME").is_none_or(|name| name == "husk")
    }

    /// The same with a configuration file of this text.
    #[must_use]
    pub fn configured(mut self, toml: &str) -> Self {
        let path = self.directory.path().join("config.toml");
        fs::write(&path, toml).unwrap();
        self.options
            .extend(["--config".into(), path.display().to_string()]);
        self
    }

    /// A name no other case uses.
    #[must_use]
    pub fn new_id() -> String {
        let number = NEXT_ID.fetch_add(1, Ordering::Relaxed);
        format!("case-{}-{number}", std::process::id())
    }

    /// Its executable.
    #[must_use]
    pub fn executable(&self) -> &Path {
        &self.executable
    }

    /// Its absolute path, for engines that take no name.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        Path::new("/usr/sbin").join(&self.executable)
    }

    /// Its state directory.
    #[must_use]
    pub fn root(&self) -> PathBuf {
        self.directory.path().join("root")
    }

    /// What it has logged.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(self.directory.path().join("log")).unwrap_or_default()
    }

    /// The configuration that its verb `spec` writes.
    #[must_use]
    pub fn spec(&self) -> Value {
        let text = kept("spec.json", || {
            let bundle = TempDir::new().unwrap();
            let status = Command::new(&self.executable)
                .args(["spec", "--bundle"])
                .arg(bundle.path())
                .status();
            assert!(status.unwrap().success(), "the verb spec works");
            fs::read(bundle.path().join("config.json")).unwrap()
        });
        serde_json::from_slice(&text).unwrap()
    }

    /// A call with its common options.
    #[must_use]
    pub fn command<S: AsRef<OsStr>>(&self, words: &[S]) -> Command {
        let mut command = Command::new(&self.executable);
        command.arg("--root").arg(self.root()).arg("--debug");
        command.arg("--log").arg(self.directory.path().join("log"));
        command.args(&self.options).args(words);
        captured(command)
    }

    /// Calls it and waits.
    #[must_use]
    pub fn call<S: AsRef<OsStr>>(&self, words: &[S]) -> Output {
        Running::start(self.command(words), String::new()).wait()
    }

    /// What its verb `state` says of a container.
    #[must_use]
    pub fn state(&self, id: &str) -> Value {
        let output = self.call(&["state", id]);
        output.assert_status(0);
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// A process that the record of a container names: its `supervisor`, or its `vmm`.
    #[must_use]
    pub fn process(&self, id: &str, role: &str) -> Pid {
        let text = fs::read(self.root().join(id).join("state.json")).unwrap();
        let record: Value = serde_json::from_slice(&text).unwrap();
        let pid = record[role]["pid"].as_i64();
        let pid = pid.unwrap_or_else(|| panic!("no pid of a {role} in {record}"));
        Pid::from_raw(i32::try_from(pid).unwrap()).unwrap()
    }

    /// Runs a bundle to its end; nothing may be left of it.
    #[must_use]
    pub fn run(&self, bundle: &Bundle) -> Output {
        self.run_with_input(bundle, b"")
    }

    /// The same with standard input.
    #[must_use]
    pub fn run_with_input(&self, bundle: &Bundle, input: &[u8]) -> Output {
        let before = Remains::seen();
        let id = Self::new_id();
        let mut running = self.start_as(bundle, &id, Stdio::piped());
        let mut stdin = running.take_stdin();
        let input = input.to_vec();
        let writer = thread::spawn(move || {
            // A container that ends without reading all of it is a case of its own.
            let _ = stdin.write_all(&input);
        });
        let output = running.wait();
        writer.join().unwrap();
        before.assert_nothing_new(&id, &self.root());
        output
    }

    /// Starts a bundle in the foreground and lets it run.
    #[must_use]
    pub fn start(&self, bundle: &Bundle) -> Running {
        self.start_as(bundle, &Self::new_id(), Stdio::piped())
    }

    /// The same under a name.
    #[must_use]
    pub fn start_as(&self, bundle: &Bundle, id: &str, stdin: Stdio) -> Running {
        bundle.write();
        let path = bundle.path().to_str().unwrap();
        let mut command = self.command(&["run", "--bundle", path, id]);
        command.stdin(stdin);
        Running::start(command, id.to_owned())
    }

    /// Starts a bundle in the foreground of a terminal.
    #[must_use]
    pub fn start_in(&self, bundle: &Bundle, terminal: &Terminal) -> Child {
        bundle.write();
        let path = bundle.path().to_str().unwrap();
        let command = self.command(&["run", "--bundle", path, &Self::new_id()]);
        terminal.command(&command).spawn().unwrap()
    }
}

impl Drop for Runtime {
    /// A case that failed shows what the runtime logged.
    fn drop(&mut self) {
        if thread::panicking() {
            println!("--- log of the runtime\n{}", self.log());
        }
    }
}

impl Output {
    /// Runs a command to its end.
    #[must_use]
    pub fn of(command: Command) -> Self {
        Running::start(command, String::new()).wait()
    }
}

/// A command under way. Killed when dropped.
#[derive(Debug)]
pub struct Running {
    child: Child,
    /// The name of its container.
    pub id: String,
    stdout: Option<JoinHandle<Vec<u8>>>,
    stderr: Option<JoinHandle<Vec<u8>>>,
}

impl Running {
    fn start(mut command: Command, id: String) -> Self {
        let mut child = command.spawn().expect("the runtime can be executed");
        let stderr = child.stderr.take().map(collect);
        Self {
            child,
            id,
            stdout: None,
            stderr,
        }
    }

    /// Its standard input.
    #[must_use]
    pub fn take_stdin(&mut self) -> ChildStdin {
        self.child
            .stdin
            .take()
            .expect("standard input is a pipe, taken once")
    }

    /// Its standard output, for a case that reads by itself.
    #[must_use]
    pub fn take_stdout(&mut self) -> ChildStdout {
        self.child
            .stdout
            .take()
            .expect("standard output is a pipe, taken once")
    }

    /// Waits until it has printed `text`; what it prints later is left to [`Running::wait`].
    pub fn wait_for(&mut self, text: &str) {
        let mut stdout = self.take_stdout();
        read_until(&mut stdout, text);
        self.stdout = Some(collect(stdout));
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Its process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Whether it has ended.
    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    /// Waits for its end.
    #[must_use]
    pub fn wait(mut self) -> Output {
        if let Some(stdout) = self.child.stdout.take() {
            self.stdout = Some(collect(stdout));
        }
        drop(self.child.stdin.take());
        let watchdog = Watchdog::set(Pid::from_child(&self.child));
        let status = self.child.wait().unwrap();
        watchdog.rest();
        let joined = |reader: Option<JoinHandle<Vec<u8>>>| {
            reader
                .map(|reader| reader.join().unwrap())
                .unwrap_or_default()
        };
        Output::new(
            status,
            joined(self.stdout.take()),
            joined(self.stderr.take()),
        )
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            // It may end by itself in between.
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// Kills a process that takes too long.
struct Watchdog {
    rest: mpsc::Sender<()>,
    thread: JoinHandle<bool>,
}

impl Watchdog {
    fn set(pid: Pid) -> Self {
        let (rest, told) = mpsc::channel();
        let thread = thread::spawn(move || {
            let late = told.recv_timeout(DEADLINE).is_err();
            if late {
                // It may have ended just now.
                let _ = kill_process(pid, Signal::KILL);
            }
            late
        });
        Self { rest, thread }
    }

    fn rest(self) {
        // The thread may be gone already, having killed.
        let _ = self.rest.send(());
        assert!(
            !self.thread.join().unwrap(),
            "it did not end within {DEADLINE:?}"
        );
    }
}

/// Reads until it has read `text`.
pub(crate) fn read_until(from: &mut impl Read, text: &str) {
    let mut seen = Vec::new();
    let mut byte = [0];
    while !seen.ends_with(text.as_bytes()) {
        let count = from.read(&mut byte).unwrap();
        let shown = String::from_utf8_lossy(&seen);
        assert_eq!(count, 1, "{text:?} was not printed, but {shown:?}");
        seen.push(byte[0]);
    }
}

pub(crate) fn collect(mut from: impl Read + Send + 'static) -> JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        from.read_to_end(&mut bytes).unwrap();
        bytes
    })
}
