//! containerd, whose shim for runc drives the runtime under test: a daemon of the case's own, and `ctr` to ask it.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use tempfile::TempDir;

use crate::daemon::Daemon;
use crate::output::captured;
use crate::{Bundle, Output, Runtime};

/// What the daemon says when it can be asked.
const READY: &str = "containerd successfully booted";

/// Where `ctr` makes its containers.
const NAMESPACE: &str = "default";

/// See the module.
#[derive(Debug)]
pub struct Containerd {
    _daemon: Daemon,
    directory: TempDir,
    bundle: Bundle,
}

impl Containerd {
    /// With busybox as the root file system of its containers.
    #[must_use]
    pub fn with_busybox() -> Self {
        let directory = TempDir::new().unwrap();
        let at = |name: &str| directory.path().join(name);
        let file = at("config.toml");
        fs::write(
            &file,
            "version = 2\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n",
        )
        .unwrap();
        let mut daemon = Command::new("containerd");
        daemon.arg("--config").arg(file);
        daemon.arg("--root").arg(at("root"));
        daemon.arg("--state").arg(at("state"));
        daemon.arg("--address").arg(at("socket"));
        Self {
            _daemon: Daemon::start(daemon, READY),
            directory,
            bundle: Bundle::busybox(),
        }
    }

    /// A call of `ctr`.
    #[must_use]
    pub fn call(&self, words: &[&str]) -> Output {
        let mut command = Command::new("ctr");
        command.arg("--address").arg(self.at("socket"));
        command.args(words);
        Output::of(captured(command))
    }

    /// Runs a container: options, its name, then the command.
    #[must_use]
    pub fn run(&self, options: &[&str], id: &str, command: &[&str]) -> Output {
        let runtime = Runtime::from_environment().path();
        let (root, rootfs) = (self.at("runtime"), self.bundle.rootfs());
        let own = [
            "run",
            "--runc-binary",
            runtime.to_str().unwrap(),
            "--runc-root",
            root.to_str().unwrap(),
            "--env",
            "PATH=/bin",
            "--rootfs",
        ];
        self.call(&[&own, options, &[rootfs.to_str().unwrap(), id], command].concat())
    }

    /// Where the runtime keeps its state.
    #[must_use]
    pub fn runtime_root(&self) -> PathBuf {
        self.at("runtime").join(NAMESPACE)
    }

    fn at(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }
}
