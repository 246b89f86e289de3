//! A container made step by step, in the background, that verbs are tried on.

use std::fs::File;
use std::io::PipeReader;

use rustix::process::Pid;
use serde_json::Value;
use tempfile::NamedTempFile;

use crate::runtime::read_until;
use crate::{Bundle, Output, Remains, Runtime, wait};

/// A container that was created. Removed when dropped.
#[derive(Debug)]
pub struct Background<'a> {
    runtime: &'a Runtime,
    /// Its name.
    pub id: String,
    before: Remains,
    stdout: PipeReader,
    stderr: NamedTempFile,
    /// Its files, for as long as it is there.
    _bundle: Bundle,
}

impl<'a> Background<'a> {
    /// Creates a container of this bundle.
    #[must_use]
    pub fn created(runtime: &'a Runtime, bundle: Bundle) -> Self {
        bundle.write();
        let before = Remains::seen();
        let id = Runtime::new_id();
        let (stdout, writer) = std::io::pipe().unwrap();
        let stderr = NamedTempFile::new().unwrap();
        let path = bundle.path().to_str().unwrap();
        let mut command = runtime.command(&["create", "--bundle", path, &id]);
        command
            .stdout(writer)
            .stderr(File::create(stderr.path()).unwrap());
        let status = command.status().unwrap();
        // The command has a copy of the pipe's other end.
        drop(command);
        let container = Self {
            runtime,
            id,
            before,
            stdout,
            stderr,
            _bundle: bundle,
        };
        assert!(status.success(), "create: {}", container.errors());
        container
    }

    /// Creates one and starts it.
    #[must_use]
    pub fn started(runtime: &'a Runtime, bundle: Bundle) -> Self {
        let container = Self::created(runtime, bundle);
        container.call(&["start"]).assert_status(0);
        container
    }

    /// A verb with its options, then this container.
    #[must_use]
    pub fn call(&self, words: &[&str]) -> Output {
        self.runtime.call(&[words, &[self.id.as_str()]].concat())
    }

    /// A command in this container.
    #[must_use]
    pub fn exec(&self, command: &[&str]) -> Output {
        let words = [&["exec", self.id.as_str()], command].concat();
        self.runtime.call(&words)
    }

    /// A signal to its init process.
    #[must_use]
    pub fn kill(&self, signal: &str) -> Output {
        self.runtime.call(&["kill", &self.id, signal])
    }

    /// What the verb `state` says.
    #[must_use]
    pub fn state(&self) -> Value {
        self.runtime.state(&self.id)
    }

    /// Its status in the words of the specification.
    #[must_use]
    pub fn status(&self) -> String {
        self.state()["status"].as_str().unwrap().to_owned()
    }

    /// Waits until it has stopped.
    pub fn until_stopped(&self) {
        let state = self.state();
        if let Some(pid) = state["pid"]
            .as_i64()
            .and_then(|pid| i32::try_from(pid).ok())
        {
            Pid::from_raw(pid).into_iter().for_each(wait::until_end);
        }
        // Its process has ended; the runtime may learn of it a little later.
        wait::until("stopped", || self.status() == "stopped");
    }

    /// Waits until it has printed `text`.
    pub fn wait_for(&mut self, text: &str) {
        read_until(&mut self.stdout, text);
    }

    /// What it wrote to its standard error.
    #[must_use]
    pub fn errors(&self) -> String {
        std::fs::read_to_string(self.stderr.path()).unwrap_or_default()
    }

    /// Removes it, whatever it does; nothing may be left.
    pub fn remove(self) {
        self.call(&["delete", "--force"]).assert_status(0);
        self.before
            .assert_nothing_new(&self.id, &self.runtime.root());
    }
}

impl Drop for Background<'_> {
    fn drop(&mut self) {
        // It may be gone already.
        let _ = self.call(&["delete", "--force"]);
    }
}
