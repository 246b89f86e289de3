//! Files and folders of the host in a container, and its root file system made read-only.

use std::process::Command;

use harness::{Bundle, Runtime};
use serde_json::json;

fn run(bundle: &Bundle) -> harness::Output {
    Runtime::from_environment().run(bundle)
}

#[test]
fn read_only_root_cannot_be_written() {
    let bundle = Bundle::busybox()
        .shell("touch /file 2>&1 || echo refused; touch /dev/shm/x && echo shm")
        .with("/root/readonly", json!(true));
    let output = run(&bundle);
    output.assert_prints_part("Read-only file system\nrefused\nshm\n");
    assert!(!bundle.rootfs().join("file").exists());
}

#[test]
fn a_folder_is_shared_both_ways() {
    let host = tempfile::tempdir().unwrap();
    std::fs::write(host.path().join("given"), "from the host\n").unwrap();
    let bundle = Bundle::busybox()
        .shell("cat /data/given; echo from the container >/data/taken")
        .bind(host.path(), "/data", &["rbind", "rw"]);
    run(&bundle).assert_prints("from the host\n");
    let taken = std::fs::read_to_string(host.path().join("taken")).unwrap();
    assert_eq!(taken, "from the container\n");
}

#[test]
fn a_read_only_folder_is_not_written() {
    let host = tempfile::tempdir().unwrap();
    std::fs::write(host.path().join("given"), "from the host\n").unwrap();
    let bundle = Bundle::busybox()
        .shell("cat /data/given; touch /data/new 2>/dev/null || echo refused; rm /data/given 2>/dev/null || echo kept")
        .bind(host.path(), "/data", &["rbind", "ro"]);
    run(&bundle).assert_prints("from the host\nrefused\nkept\n");
    assert_eq!(std::fs::read_dir(host.path()).unwrap().count(), 1);
}

#[test]
fn a_single_file_is_shared() {
    let host = tempfile::tempdir().unwrap();
    let file = host.path().join("one");
    std::fs::write(&file, "before\n").unwrap();
    std::fs::write(host.path().join("beside"), "not shared\n").unwrap();
    let bundle = Bundle::busybox()
        .shell("cat /etc/one; echo after >/etc/one; ls /etc")
        .bind(&file, "/etc/one", &["bind"]);
    run(&bundle).assert_prints("before\none\npasswd\n");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "after\n");
}

#[test]
fn a_single_file_can_be_read_only() {
    let host = tempfile::tempdir().unwrap();
    let file = host.path().join("one");
    std::fs::write(&file, "kept\n").unwrap();
    let bundle = Bundle::busybox()
        .shell("(echo lost >/etc/one) 2>/dev/null || cat /etc/one")
        .bind(&file, "/etc/one", &["bind", "ro"]);
    run(&bundle).assert_prints("kept\n");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "kept\n");
}

#[test]
fn what_the_host_writes_later_is_seen() {
    let host = tempfile::tempdir().unwrap();
    let runtime = Runtime::from_environment();
    let bundle = Bundle::busybox()
        .shell("ls /data; echo up; while ! cat /data/late 2>/dev/null; do usleep 10000; done")
        .bind(host.path(), "/data", &["bind"]);
    let mut running = runtime.start(&bundle);
    running.wait_for("up\n");
    std::fs::write(host.path().join(".new"), "late\n").unwrap();
    std::fs::rename(host.path().join(".new"), host.path().join("late")).unwrap();
    running.wait().assert_prints("late\n");
}

#[test]
fn options_of_a_bind_mount_hold() {
    let host = tempfile::tempdir().unwrap();
    std::fs::copy("/bin/busybox", host.path().join("busybox")).unwrap();
    let bundle = Bundle::busybox()
        .shell("/data/busybox true 2>/dev/null || echo refused; grep -c ' /data .*nosuid.*nodev.*noexec' /proc/self/mountinfo")
        .bind(host.path(), "/data", &["bind", "noexec", "nosuid", "nodev"]);
    run(&bundle).assert_prints("refused\n1\n");
}

/// Host mounts below a folder, unmounted when dropped.
struct Mounts(tempfile::TempDir);

impl Mounts {
    fn of(places: &[&str]) -> Self {
        let mounts = Self(tempfile::tempdir().unwrap());
        for place in places {
            let path = mounts.0.path().join(place);
            std::fs::create_dir_all(&path).unwrap();
            let mount = Command::new("mount")
                .args(["-t", "tmpfs", "case"])
                .arg(path)
                .status();
            assert!(mount.unwrap().success());
        }
        mounts
    }
}

impl Drop for Mounts {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-R").arg(self.0.path()).status();
    }
}

#[test]
fn attributes_are_those_of_one_mount_or_of_all_below_it() {
    let mounts = Mounts::of(&[".", "below", "below/far below"]);
    let script = "for m in /flat /deep /all; do for d in $m $m/below \"$m/below/far below\"; do \
        touch \"$d/x\" 2>/dev/null && echo \"$d written\"; done; done; \
        sed -n 's/^[^/]* [^ ]* \\(\\/\\(flat\\|deep\\|all\\)[^ ]*\\) \\([^ ]*\\) .*/\\1 \\3/p' /proc/self/mountinfo";
    let bundle = Bundle::busybox()
        .shell(script)
        .bind(
            mounts.0.path(),
            "/flat",
            &["rbind", "ro", "noexec", "noatime"],
        )
        .bind(mounts.0.path(), "/deep", &["rbind", "rro", "nosuid"])
        .bind(
            mounts.0.path(),
            "/all",
            &[
                "rbind",
                "rnosuid",
                "rnodev",
                "rnoexec",
                "rnoatime",
                "rnodiratime",
            ],
        );
    let all = "rw,nosuid,nodev,noexec,noatime,nodiratime";
    run(&bundle).assert_prints(&format!(
        "/flat/below written\n/flat/below/far below written\n\
         /all written\n/all/below written\n/all/below/far below written\n\
         /flat ro,noexec,noatime\n/flat/below rw,relatime\n/flat/below/far\\040below rw,relatime\n\
         /deep ro,nosuid,relatime\n/deep/below ro,relatime\n/deep/below/far\\040below ro,relatime\n\
         /all {all}\n/all/below {all}\n/all/below/far\\040below {all}\n"
    ));
}
