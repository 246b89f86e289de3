//! Docker with the runtime under test as its default one: a daemon of the tests' own, which cases have one after another, and all that
//! it has in a directory of its own.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use serde_json::json;

use crate::command_line::{CommandLine, IMAGE, pack_busybox};
use crate::output::captured;
use crate::shared::Shared;
use crate::{Output, Runtime};

/// Debian's: there may be others on the path.
const DOCKER: &str = "/usr/bin/docker";
const DAEMON: &str = "/usr/sbin/dockerd";

/// What the daemon says when it can be asked.
const READY: &str = "API listen on";

/// See the module. Its containers are removed when it is dropped.
#[derive(Debug)]
pub struct Docker(Shared);

impl Docker {
    /// With the image `busybox`.
    #[must_use]
    pub fn with_busybox() -> Self {
        Self(Shared::new("docker", start))
    }
}

fn start(shared: &mut Shared) {
    let name = if Runtime::is_husk() { "husk" } else { "runc" };
    let mut configuration = json!({
        "default-runtime": name,
        "data-root": shared.at("data"),
        "exec-root": shared.at("run"),
        "pidfile": shared.at("pid"),
        "deprecated-key-path": shared.at("key"),
        "hosts": [format!("unix://{}", shared.at("socket").display())],
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
    let file = shared.at("daemon.json");
    fs::write(&file, configuration.to_string()).unwrap();
    let mut daemon = Command::new(DAEMON);
    daemon.arg("--config-file").arg(file);
    shared.start(daemon, READY);
    let archive = shared.at("busybox.tar");
    pack_busybox(&archive);
    let archive = archive.to_str().unwrap();
    Output::of(client(shared, &["import", archive, IMAGE])).assert_status(0);
}

fn client(shared: &Shared, words: &[&str]) -> Command {
    let mut command = Command::new(DOCKER);
    command.arg("--config").arg(shared.at("client"));
    command.arg("--host");
    command.arg(format!("unix://{}", shared.at("socket").display()));
    command.args(words);
    captured(command)
}

/// Removes the containers that a case has left, and must have if it has failed. Whether it was done.
fn remove_all(shared: &Shared) -> bool {
    let done = |words: &[&str]| {
        client(shared, words)
            .output()
            .ok()
            .filter(|output| output.status.success())
    };
    let Some(listed) = done(&["ps", "--all", "--quiet"]) else {
        return false;
    };
    let ids = String::from_utf8_lossy(&listed.stdout);
    let words = ["rm", "--force"].into_iter().chain(ids.split_whitespace());
    ids.is_empty() || done(&words.collect::<Vec<_>>()).is_some()
}

impl CommandLine for Docker {
    fn command(&self, words: &[&str]) -> Command {
        client(&self.0, words)
    }

    fn runtime_root(&self) -> PathBuf {
        // Whatever the runtime's name is.
        self.0.at("run/runtime-runc/moby")
    }
}

impl Drop for Docker {
    fn drop(&mut self) {
        if remove_all(&self.0) {
            self.0.release();
        }
    }
}
