//! Files of volumes as the host's users have them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use harness::{Bundle, Runtime};
use serde_json::json;

/// A tmpfs of the host, unmounted when dropped.
struct Volume(tempfile::TempDir);

impl Volume {
    fn new() -> Self {
        let volume = Self(tempfile::tempdir().unwrap());
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "husk-case"]);
        let status = mount.arg(volume.0.path()).status().unwrap();
        assert!(status.success());
        volume
    }

    fn path(&self, below: &str) -> PathBuf {
        self.0.path().join(below)
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg("-l").arg(self.0.path()).status();
        assert!(unmounted.unwrap().success());
    }
}

/// Writes a file that everybody may read but user 1000, by its access control list.
fn listed(path: &Path) {
    fs::write(path, "secret\n").unwrap();
    // Version 2; then tag, permissions and id of each entry.
    let mut list = 2u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in [
        (1u16, 6u16, u32::MAX),
        (2, 0, 1000),
        (4, 4, u32::MAX),
        (16, 4, u32::MAX),
        (32, 4, u32::MAX),
    ] {
        list.extend(tag.to_le_bytes());
        list.extend(permissions.to_le_bytes());
        list.extend(id.to_le_bytes());
    }
    let flags = rustix::fs::XattrFlags::empty();
    rustix::fs::setxattr(path, "system.posix_acl_access", &list, flags).unwrap();
}

#[test]
fn a_list_of_the_hosts_shuts_its_user_out() {
    let volume = Volume::new();
    let bundle = Bundle::busybox()
        .shell(
            "for file in /listed /vol/listed; do cat $file 2>/dev/null || echo denied; done; \
             cat /vol/free",
        )
        .bind(&volume.path(""), "/vol", &["rbind", "rw"])
        .with("/process/user", json!({"uid": 1000, "gid": 1000}))
        .capabilities(&[]);
    listed(&bundle.rootfs().join("listed"));
    listed(&volume.path("listed"));
    fs::write(volume.path("free"), "free\n").unwrap();
    let output = Runtime::from_environment().run(&bundle);
    output.assert_prints("denied\ndenied\nfree\n");
}
