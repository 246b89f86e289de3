//! What users of files expect of a root file system and of a volume alike, whatever file system of
//! the host is behind them: here an ext4 and a tmpfs, of which those before Linux 6.6 forget
//! positions in a directory that shrinks.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use harness::{Bundle, Runtime};
use serde_json::json;

const CHECKS: [&str; 14] = [
    "shrinking",
    "unnamed",
    "exchange",
    "holes",
    "allocate",
    "copy-range",
    "large",
    "old-times",
    "change-times",
    "refusals",
    "privileges-cleared",
    "statistics",
    "mapped-for-the-host",
    "lists",
];

const CAPABILITIES: [&str; 7] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_MKNOD",
    "CAP_SETGID",
    "CAP_SETUID",
];

/// Files in a folder that is removed: more than a server reads of it at once.
const MANY: usize = 550;
/// Files in other folders.
const FEW: usize = 20;

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

    /// A folder with so many files, and a second folder with a few.
    fn fill(&self, name: &str, files: usize) {
        let folder = self.path(name);
        fs::create_dir_all(folder.join("nested")).unwrap();
        for number in 0..files {
            fs::write(folder.join(format!("file-{number}")), "").unwrap();
        }
        for number in 0..FEW {
            fs::write(folder.join(format!("nested/file-{number}")), "").unwrap();
        }
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg("-l").arg(self.0.path()).status();
        assert!(unmounted.unwrap().success());
    }
}

#[test]
fn promises_of_a_local_file_system_hold_on_the_root_and_on_a_volume() {
    let volume = Volume::new();
    let words = CHECKS.join(" ");
    let bundle = Bundle::busybox()
        .probe(env!("CARGO_BIN_EXE_probe"), &[])
        .shell(&format!("probe {words}; WORK=/vol probe {words}"))
        .bind(&volume.path(""), "/vol", &["rbind", "rw"])
        .capabilities(&CAPABILITIES);
    let output = Runtime::from_environment().run(&bundle);
    output.assert_prints(
        &CHECKS
            .map(|check| format!("{check} holds\n"))
            .concat()
            .repeat(2),
    );
    for work in [bundle.rootfs().join("work"), volume.path("")] {
        let mapped = fs::read(work.join("mapped-for-the-host/mapped")).unwrap();
        assert_eq!((mapped[0], mapped[4096]), (b'a', b'b'), "{work:?}");
        assert_eq!(fs::read(work.join("unnamed/named")).unwrap(), b"Text");
        let old = fs::metadata(work.join("old-times/old")).unwrap();
        assert_eq!((old.atime(), old.atime_nsec()), (-1, 123_456_789));
    }
}

#[test]
fn a_tree_of_hundreds_is_removed_and_changed_whole() {
    let volume = Volume::new();
    volume.fill("removed", MANY);
    volume.fill("owned", FEW);
    let bundle = Bundle::busybox()
        .shell(
            "cd /vol; rm -r removed && echo removed; \
             chown -R 77 owned && find owned ! -user 77 | wc -l",
        )
        .bind(&volume.path(""), "/vol", &["rbind", "rw"])
        .capabilities(&CAPABILITIES);
    let output = Runtime::from_environment().run(&bundle);
    output.assert_prints("removed\n0\n");
    let folder = volume.path("owned/nested");
    let owned = fs::read_dir(folder).unwrap().filter(|entry| {
        let entry = entry.as_ref().unwrap();
        entry.metadata().unwrap().uid() == 77
    });
    assert_eq!(owned.count(), FEW);
}

/// An overlay whose upper layer is on the volume, used, mounted again and looked at.
const OVERLAY: &str = r#"
    bad() { echo "NOT $*"; exit 1; }
    over() { mount -t overlay -o lowerdir=/low,upperdir=/vol/u,workdir=/vol/w none /merged || bad mount; }
    over
    cd /merged
    [ "$(cat file)" = lower ] || bad "a file of the lower layer"
    echo more >>file || bad "copy up"
    rm gone || bad "remove a file of the lower layer"
    rm -r dir && mkdir dir || bad "a folder anew"
    [ -z "$(ls dir)" ] || bad "the folder made anew shows what was in the old one"
    mv moved elsewhere || bad "rename a file of the lower layer"
    mv link points || bad "rename a link of the lower layer"
    cd /
    umount /merged || bad umount
    over
    [ "$(cat /merged/file)" = "lower
more" ] || bad "changes after a second mount"
    [ ! -e /merged/gone ] || bad "the removed file is back"
    [ -z "$(ls /merged/dir)" ] || bad "the folder made anew is the old one again"
    [ ! -e /merged/moved ] && [ "$(cat /merged/elsewhere)" = m ] || bad renamed
    [ "$(readlink /merged/points)" = file ] || bad "renamed link"
    [ "$(cat /low/file)" = lower ] || bad "the lower layer was written"
    umount /merged
    echo holds
"#;

#[test]
fn an_overlay_keeps_its_upper_layer_on_a_volume() {
    // Not a tmpfs: before Linux 6.6 those have no attributes of users, which is what the guest's trusted ones are.
    let volume = tempfile::tempdir().unwrap();
    for name in ["u", "w"] {
        fs::create_dir(volume.path().join(name)).unwrap();
    }
    let capabilities = [&CAPABILITIES[..], &["CAP_SYS_ADMIN"]].concat();
    let bundle = Bundle::busybox()
        .shell(OVERLAY)
        .bind(volume.path(), "/vol", &["rbind", "rw"])
        .capabilities(&capabilities)
        .with("/linux/seccomp", json!(null));
    let root = bundle.rootfs();
    for folder in ["low/dir", "merged"] {
        fs::create_dir_all(root.join(folder)).unwrap();
    }
    for (file, text) in [
        ("file", "lower\n"),
        ("gone", "gone\n"),
        ("dir/old", "below\n"),
        ("moved", "m\n"),
    ] {
        fs::write(root.join("low").join(file), text).unwrap();
    }
    std::os::unix::fs::symlink("file", root.join("low/link")).unwrap();
    let output = Runtime::from_environment().run(&bundle);
    output.assert_prints("holds\n");
    let white_out = fs::metadata(volume.path().join("u/gone")).unwrap();
    assert!(white_out.file_type().is_char_device() && white_out.rdev() == 0);
    assert!(volume.path().join("u/elsewhere").exists());
}

/// Writes a file with an access control list that says what `user` may, and what all others.
fn listed(path: &Path, (user, its): (u32, u16), others: u16) {
    fs::write(path, "secret\n").unwrap();
    // Version 2; then tag, permissions and id of each entry.
    let mut list = 2u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in [
        (1u16, 6u16, u32::MAX),
        (2, its, user),
        (4, others, u32::MAX),
        (16, 4, u32::MAX),
        (32, others, u32::MAX),
    ] {
        list.extend(tag.to_le_bytes());
        list.extend(permissions.to_le_bytes());
        list.extend(id.to_le_bytes());
    }
    let flags = rustix::fs::XattrFlags::empty();
    rustix::fs::setxattr(path, "system.posix_acl_access", &list, flags).unwrap();
}

#[test]
fn a_list_of_the_hosts_shuts_its_user_out_or_lets_him_in() {
    let volume = Volume::new();
    let look = "for file in /out /vol/out /vol/in; do cat $file 2>/dev/null || echo denied; done";
    let reader = || {
        let bundle = Bundle::busybox()
            .shell(look)
            .bind(&volume.path(""), "/vol", &["rbind", "rw"])
            .with("/process/user", json!({"uid": 1000, "gid": 1000}))
            .capabilities(&[]);
        fs::create_dir(bundle.rootfs().join("vol")).unwrap();
        bundle
    };
    // The second container's user 1000 is 101000 to its kernel and to the host's files.
    for (user, bundle) in [(1000, reader()), (101_000, reader().own_users(65_536))] {
        listed(&bundle.rootfs().join("out"), (user, 0), 4);
        listed(&volume.path("out"), (user, 0), 4);
        listed(&volume.path("in"), (user, 4), 0);
        let output = Runtime::from_environment().run(&bundle);
        output.assert_prints("denied\ndenied\nsecret\n");
    }
}
