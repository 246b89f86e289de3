//! The share between guest and host: a container that gets hold of it changes its own files, and
//! nothing above them.

use std::fs;

use harness::{Bundle, Runtime, only_husk};

/// Where the share is mounted a second time, by who may.
const SEEN: &str = "mkdir -p /seen && mount -t virtiofs husk /seen && cd /seen";

#[test]
fn a_privileged_container_changes_nothing_above_its_files() {
    only_husk("runc has no share");
    let runtime = Runtime::from_environment();
    let script = format!(
        "{SEEN} || exit 9; id=$(ls); \
         for d in . $id $id/mounts; do \
           for c in \"mkdir $d/new\" \"touch $d/new\" \"ln -s /etc $d/new\" \"mknod $d/new b 8 0\" \
                    \"chmod 777 $d\" \"chown 7 $d\" \"ln $id/rootfs/bin/busybox $d/new\" \
                    \"mv $id/rootfs/bin/busybox $d/new\" \"mv $id $d/new\" \"rmdir $id/mounts/0\" \
                    \"rm -rf $id/mounts\" \"mount -o remount,rw /seen && mkdir $d/new\"; do \
             eval \"$c\" 2>/dev/null && echo \"$c\"; \
           done; \
         done; echo hacked >$id/mounts/1 && cat $id/mounts/1; ls -R $id/mounts | wc -l; \
         touch $id/rootfs/mine $id/mounts/0/mine && echo own files are written"
    );
    let volume = tempfile::tempdir().unwrap();
    let file = tempfile::NamedTempFile::new().unwrap();
    let bundle = Bundle::busybox()
        .shell(&script)
        .capabilities(&[
            "CAP_SYS_ADMIN",
            "CAP_MKNOD",
            "CAP_CHOWN",
            "CAP_FOWNER",
            "CAP_DAC_OVERRIDE",
        ])
        .bind(volume.path(), "/volume", &["rbind", "rw"])
        .bind(file.path(), "/file", &["bind", "rw"]);
    let output = runtime.run(&bundle);
    let text = output.text();
    output.assert_status(0);
    assert!(text.ends_with("own files are written\n"), "{output:?}");
    assert!(text.starts_with("hacked\n"), "{output:?}");
    assert!(!text.contains("new"), "{output:?}");
    assert!(bundle.rootfs().join("mine").exists());
    assert!(volume.path().join("mine").exists());
    assert_eq!(fs::read_to_string(file.path()).unwrap(), "hacked\n");
}

#[test]
fn nodes_and_set_id_programs_are_the_guests_to_use() {
    let bundle = Bundle::busybox()
        .shell(
            "mknod /tmp/zero c 1 5 && head -c 2 /tmp/zero | wc -c; \
             cp /bin/busybox /tmp/id && chown 1234 /tmp/id && chmod 4755 /tmp/id && \
             /tmp/id stat -c %a,%u /tmp/id",
        )
        .capabilities(&["CAP_MKNOD", "CAP_CHOWN", "CAP_FOWNER", "CAP_FSETID"]);
    Runtime::from_environment()
        .run(&bundle)
        .assert_prints("2\n4755,1234\n");
}
