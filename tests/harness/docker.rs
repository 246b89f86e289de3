//! Docker with the runtime under test as its default one: a daemon of the case's own, all of it in a directory of the case's own.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use serde_json::json;
use tempfile::TempDir;

use crate::Runtime;
use crate::command_line::{CommandLine, IMAGE, pack_busybox};
use crate::daemon::Daemon;
use crate::output::captured;

/// Debian's: there may be others on the path.
const DOCKER: &str = "/usr/bin/docker";
const DAEMON: &str = "/usr/sbin/dockerd";

/// What the daemon says when it can be asked.
const READY: &str = "API listen on";

/// See the module. Its containers are removed and the daemon is ended when it is dropped.
#[derive(Debug)]
pub struct Docker {
    _daemon: Daemon,
    directory: TempDir,
}

impl Docker {
    /// With the image `busybox`.
    #[must_use]
    pub fn with_busybox() -> Self {
        let directory = TempDir::new().unwrap();
        let name = if Runtime::is_husk() { "husk" } else { "runc" };
        let at = |name: &str| directory.path().join(name);
        let mut configuration = json!({
            "default-runtime": name,
            "data-root": at("data"),
            "exec-root": at("run"),
            "pidfile": at("pid"),
            "deprecated-key-path": at("key"),
            "hosts": [format!("unix://{}", at("socket").display())],
            "storage-driver": "overlay2",
            "exec-opts": ["native.cgroupdriver=cgroupfs"],
            "bridge": "none",
            "iptables": false,
            "ip6tables": false,
        });
        if Runtime::is_husk() {
            let path = Runtime::from_environment().path();
            configuration["runtimes"] = json!({name: {"path": path}});
        }
        let file = at("daemon.json");
        fs::write(&file, configuration.to_string()).unwrap();
        let mut daemon = Command::new(DAEMON);
        daemon.arg("--config-file").arg(file);
        let docker = Self {
            _daemon: Daemon::start(daemon, READY),
            directory,
        };
        let archive = docker.directory.path().join("busybox.tar");
        pack_busybox(&archive);
        let archive = archive.to_str().unwrap();
        docker.call(&["import", archive, IMAGE]).assert_status(0);
        docker
    }
}

impl CommandLine for Docker {
    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(DOCKER);
        let at = |name: &str| self.directory.path().join(name);
        command.arg("--config").arg(at("client"));
        command.arg("--host");
        command.arg(format!("unix://{}", at("socket").display()));
        command.args(words);
        captured(command)
    }

    fn runtime_root(&self) -> PathBuf {
        // Whatever the runtime's name is.
        self.directory.path().join("run/runtime-runc/moby")
    }
}

impl Drop for Docker {
    fn drop(&mut self) {
        // A case may have left containers, and must have if it has failed.
        let Ok(listed) = self.command(&["ps", "--all", "--quiet"]).output() else {
            return;
        };
        let ids = String::from_utf8_lossy(&listed.stdout);
        let words = ["rm", "--force"].into_iter().chain(ids.split_whitespace());
        let _ = self.command(&words.collect::<Vec<_>>()).output();
    }
}
