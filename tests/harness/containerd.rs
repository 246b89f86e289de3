//! containerd, whose shim for runc drives the runtime under test: a daemon of the tests' own, which cases have one after another, and
//! `ctr` to ask it.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use crate::output::captured;
use crate::shared::Shared;
use crate::{Bundle, Output, Runtime};

/// What the daemon says when it can be asked.
const READY: &str = "containerd successfully booted";

/// Where `ctr` makes its containers.
const NAMESPACE: &str = "default";

/// See the module. Cases remove their containers, whose names are their own.
#[derive(Debug)]
pub struct Containerd {
    shared: Shared,
    bundle: Bundle,
}

impl Containerd {
    /// With busybox as the root file system of its containers.
    #[must_use]
    pub fn with_busybox() -> Self {
        Self {
            shared: Shared::new("containerd", start),
            bundle: Bundle::busybox(),
        }
    }

    /// A call of `ctr`.
    #[must_use]
    pub fn call(&self, words: &[&str]) -> Output {
        Output::of(client(&self.shared, words))
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
        self.shared.at(name)
    }
}

fn start(shared: &mut Shared) {
    let file = shared.at("config.toml");
    fs::write(
        &file,
        "version = 2\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n",
    )
    .unwrap();
    let mut daemon = Command::new("containerd");
    daemon.arg("--config").arg(file);
    daemon.arg("--root").arg(shared.at("root"));
    daemon.arg("--state").arg(shared.at("state"));
    daemon.arg("--address").arg(shared.at("socket"));
    shared.start(daemon, READY);
}

fn client(shared: &Shared, words: &[&str]) -> Command {
    let mut command = Command::new("ctr");
    command.arg("--address").arg(shared.at("socket"));
    command.args(words);
    captured(command)
}

impl Drop for Containerd {
    fn drop(&mut self) {
        self.shared.release();
    }
}
