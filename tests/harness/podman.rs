//! Podman with the runtime under test, its storage in a directory of the case's own.

use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde_json::Value;
use tempfile::TempDir;

use crate::{Bundle, Output, Runtime, Terminal};

/// The image that every case has: busybox.
const IMAGE: &str = "busybox";

/// See the module. Its containers are removed when it is dropped.
#[derive(Debug)]
pub struct Podman {
    storage: TempDir,
    runtime: Runtime,
}

impl Podman {
    /// With the image `busybox`.
    #[must_use]
    pub fn with_busybox() -> Self {
        let podman = Self {
            storage: TempDir::new().unwrap(),
            runtime: Runtime::from_environment(),
        };
        let bundle = Bundle::busybox();
        let archive = podman.storage.path().join("busybox.tar");
        let packed = Command::new("tar")
            .arg("-C")
            .arg(bundle.rootfs())
            .arg("-cf")
            .arg(&archive)
            .arg(".")
            .status();
        assert!(packed.unwrap().success(), "the image is packed");
        let archive = archive.to_str().unwrap();
        podman
            .call(&["import", "--quiet", archive, IMAGE])
            .assert_status(0);
        podman
    }

    /// A call.
    #[must_use]
    pub fn command(&self, words: &[&str]) -> Command {
        let directory = |name: &str| self.storage.path().join(name);
        let mut command = Command::new("podman");
        command.arg("--root").arg(directory("storage"));
        command.arg("--runroot").arg(directory("run"));
        command.arg("--tmpdir").arg(directory("tmp"));
        command.args(["--storage-driver", "overlay"]);
        command.args(["--cgroup-manager", "cgroupfs"]);
        command.args(["--events-backend", "file"]);
        command.arg("--runtime").arg(self.executable());
        let root = self.runtime.root();
        command.arg(format!("--runtime-flag=root={}", root.display()));
        let log = root.with_file_name("log");
        command.arg(format!("--runtime-flag=log={}", log.display()));
        command.args(words);
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    /// Podman takes a runtime by its path.
    fn executable(&self) -> std::path::PathBuf {
        if Runtime::is_husk() {
            self.runtime.executable().to_owned()
        } else {
            Path::new("/usr/sbin").join(self.runtime.executable())
        }
    }

    /// Calls it and waits.
    #[must_use]
    pub fn call(&self, words: &[&str]) -> Output {
        Output::of(self.command(words))
    }

    /// Runs a container without a network to its end: options, then the command.
    #[must_use]
    pub fn run(&self, options: &[&str], command: &[&str]) -> Output {
        self.call(&words(options, command))
    }

    /// Starts a container in the background under a name.
    pub fn start(&self, name: &str, options: &[&str], command: &[&str]) {
        let options = [&["--detach", "--name", name], options].concat();
        self.run(&options, command).assert_status(0);
    }

    /// Runs a call in the foreground of a terminal.
    #[must_use]
    pub fn call_in(&self, terminal: &Terminal, words: &[&str]) -> Child {
        terminal.command(&self.command(words)).spawn().unwrap()
    }

    /// What it knows of a container.
    #[must_use]
    pub fn inspect(&self, name: &str) -> Value {
        let output = self.call(&["container", "inspect", name]);
        output.assert_status(0);
        let mut all: Value = serde_json::from_slice(&output.stdout).unwrap();
        all[0].take()
    }

    /// Where the runtime keeps its state.
    #[must_use]
    pub fn runtime_root(&self) -> std::path::PathBuf {
        self.runtime.root()
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        // A case that has failed may have left containers; what they hold is unmounted with them.
        let words = ["rm", "--all", "--force", "--time", "0"];
        let _ = self.command(&words).output();
        let overlay = self.storage.path().join("storage/overlay");
        let _ = Command::new("umount").arg(overlay).output();
    }
}

fn words<'a>(options: &[&'a str], command: &[&'a str]) -> Vec<&'a str> {
    [&["run", "--network", "none"], options, &[IMAGE], command].concat()
}
