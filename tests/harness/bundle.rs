//! An OCI bundle in a directory of its own: busybox as root file system, and a config.json the case edits.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::Runtime;
use crate::shared::kept;

/// Debian's busybox-static.
const BUSYBOX: &str = "/bin/busybox";
/// The probe, inside.
const PROBE: &str = "bin/probe";

/// A bundle. Gone when dropped.
#[derive(Debug)]
pub struct Bundle {
    directory: TempDir,
    /// What becomes config.json; `process.terminal` is false until a case says otherwise.
    pub config: Value,
}

impl Bundle {
    /// A bundle as `husk spec` writes it, with busybox in its root file system, that runs `true`.
    #[must_use]
    pub fn busybox() -> Self {
        let bundle = Self::empty();
        let rootfs = bundle.rootfs();
        for name in ["bin", "etc", "dev", "proc", "sys", "tmp", "root"] {
            fs::create_dir_all(rootfs.join(name)).unwrap();
        }
        fs::copy(BUSYBOX, rootfs.join("bin/busybox")).expect("busybox-static is installed");
        let list = || Command::new(BUSYBOX).arg("--list").output().unwrap().stdout;
        let applets = kept("applets", list);
        for name in String::from_utf8(applets).unwrap().lines() {
            if name != "busybox" {
                symlink("busybox", rootfs.join("bin").join(name)).unwrap();
            }
        }
        fs::write(rootfs.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\n").unwrap();
        bundle
    }

    /// A bundle whose root file system is an empty folder.
    #[must_use]
    pub fn empty() -> Self {
        let directory = TempDir::new().unwrap();
        fs::create_dir(directory.path().join("rootfs")).unwrap();
        let mut config = Runtime::from_environment().spec();
        config["process"]["terminal"] = json!(false);
        config["root"]["readonly"] = json!(false);
        config["process"]["args"] = json!(["true"]);
        Self { directory, config }
    }

    /// With this command instead.
    #[must_use]
    pub fn args(mut self, args: &[&str]) -> Self {
        self.config["process"]["args"] = json!(args);
        self
    }

    /// With this script of the shell.
    #[must_use]
    pub fn shell(self, script: &str) -> Self {
        self.args(&["sh", "-c", script])
    }

    /// With these checks of the probe.
    #[must_use]
    pub fn probe(self, executable: &str, checks: &[&str]) -> Self {
        fs::copy(executable, self.rootfs().join(PROBE)).unwrap();
        self.args(&[&["probe"], checks].concat())
    }

    /// With the value at a JSON pointer of the configuration replaced. Parents must exist.
    #[must_use]
    pub fn with(mut self, pointer: &str, value: Value) -> Self {
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        let parent = self.config.pointer_mut(parent).expect("the parent exists");
        parent[key] = value;
        self
    }

    /// With one more mount.
    #[must_use]
    pub fn mount(mut self, mount: Value) -> Self {
        self.config["mounts"].as_array_mut().unwrap().push(mount);
        self
    }

    /// With a file or folder of the host.
    #[must_use]
    pub fn bind(self, source: &Path, destination: &str, options: &[&str]) -> Self {
        self.mount(json!({"destination": destination, "type": "bind", "source": source, "options": options}))
    }

    /// With users of its own: its first `count` users and groups are those of the outside from 100000 on.
    #[must_use]
    pub fn own_users(self, count: u32) -> Self {
        let map = json!([{"containerID": 0, "hostID": 100_000, "size": count}]);
        self.namespace(json!({"type": "user"}))
            .with("/linux/uidMappings", map.clone())
            .with("/linux/gidMappings", map)
    }

    /// With one namespace more.
    #[must_use]
    pub fn namespace(mut self, namespace: Value) -> Self {
        self.config["linux"]["namespaces"]
            .as_array_mut()
            .unwrap()
            .push(namespace);
        self
    }

    /// Without the namespaces of a type.
    #[must_use]
    pub fn without_namespace(mut self, kind: &str) -> Self {
        let namespaces = self.config["linux"]["namespaces"].as_array_mut().unwrap();
        namespaces.retain(|namespace| namespace["type"] != kind);
        self
    }

    /// With these capabilities in all sets but the inheritable and ambient ones.
    #[must_use]
    pub fn capabilities(mut self, names: &[&str]) -> Self {
        for set in ["bounding", "effective", "permitted"] {
            self.config["process"]["capabilities"][set] = json!(names);
        }
        self
    }

    /// The bundle's directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Its root file system.
    #[must_use]
    pub fn rootfs(&self) -> PathBuf {
        self.path().join("rootfs")
    }

    /// Writes config.json.
    pub fn write(&self) {
        let text = serde_json::to_vec_pretty(&self.config).unwrap();
        fs::write(self.path().join("config.json"), text).unwrap();
    }
}
