//! Podman with the runtime under test, its storage in a directory of the tests' own, which cases have one after another.

use std::path::PathBuf;
use std::process::Command;

use crate::command_line::{CommandLine, IMAGE, pack_busybox};
use crate::output::captured;
use crate::shared::Shared;
use crate::{Output, Runtime};

/// See the module. Its containers are removed when it is dropped.
#[derive(Debug)]
pub struct Podman {
    shared: Shared,
    runtime: Runtime,
}

impl Podman {
    /// With the image `busybox`.
    #[must_use]
    pub fn with_busybox() -> Self {
        let runtime = Runtime::from_environment();
        let make = |shared: &mut Shared| {
            let archive = shared.at("busybox.tar");
            pack_busybox(&archive);
            let words = ["import", "--quiet", archive.to_str().unwrap(), IMAGE];
            Output::of(podman(shared, &runtime, &words)).assert_status(0);
        };
        let shared = Shared::new("podman", make);
        Self { shared, runtime }
    }
}

fn podman(shared: &Shared, runtime: &Runtime, words: &[&str]) -> Command {
    let mut command = Command::new("podman");
    command.arg("--root").arg(shared.at("storage"));
    command.arg("--runroot").arg(shared.at("run"));
    command.arg("--tmpdir").arg(shared.at("tmp"));
    command.args(["--storage-driver", "overlay"]);
    command.args(["--cgroup-manager", "cgroupfs"]);
    command.args(["--events-backend", "file"]);
    command.arg("--runtime").arg(runtime.path());
    let root = runtime.root();
    command.arg(format!("--runtime-flag=root={}", root.display()));
    let log = root.with_file_name("log");
    command.arg(format!("--runtime-flag=log={}", log.display()));
    command.args(words);
    captured(command)
}

impl CommandLine for Podman {
    fn command(&self, words: &[&str]) -> Command {
        podman(&self.shared, &self.runtime, words)
    }

    fn runtime_root(&self) -> PathBuf {
        self.runtime.root()
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        // A case that has failed may have left containers; a pod's are the case's own to remove.
        let words = ["rm", "--all", "--force", "--time", "0"];
        let removed = podman(&self.shared, &self.runtime, &words).output();
        if removed.is_ok_and(|output| output.status.success()) {
            self.shared.release();
        }
    }
}
