//! Podman with the runtime under test, its storage in a directory of the case's own.

use std::path::PathBuf;
use std::process::Command;

use tempfile::TempDir;

use crate::Runtime;
use crate::command_line::{CommandLine, IMAGE, pack_busybox};
use crate::output::captured;

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
        let archive = podman.storage.path().join("busybox.tar");
        pack_busybox(&archive);
        let archive = archive.to_str().unwrap();
        podman
            .call(&["import", "--quiet", archive, IMAGE])
            .assert_status(0);
        podman
    }
}

impl CommandLine for Podman {
    fn command(&self, words: &[&str]) -> Command {
        let directory = |name: &str| self.storage.path().join(name);
        let mut command = Command::new("podman");
        command.arg("--root").arg(directory("storage"));
        command.arg("--runroot").arg(directory("run"));
        command.arg("--tmpdir").arg(directory("tmp"));
        command.args(["--storage-driver", "overlay"]);
        command.args(["--cgroup-manager", "cgroupfs"]);
        command.args(["--events-backend", "file"]);
        command.arg("--runtime").arg(self.runtime.path());
        let root = self.runtime.root();
        command.arg(format!("--runtime-flag=root={}", root.display()));
        let log = root.with_file_name("log");
        command.arg(format!("--runtime-flag=log={}", log.display()));
        command.args(words);
        captured(command)
    }

    fn runtime_root(&self) -> PathBuf {
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
