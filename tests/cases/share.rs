//! The share between guest and host: a container that gets hold of it changes its own files, and
//! nothing above them.

use harness::{Bundle, Runtime, only_husk};

/// The share, mounted a second time by who may. Linux gives the share itself only while nothing on
/// it is a mount to the guest, and volumes are: so there is none.
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
         done; find $id/mounts | wc -l; \
         touch $id/rootfs/mine && echo own files are written"
    );
    let bundle = Bundle::busybox().shell(&script).capabilities(&[
        "CAP_SYS_ADMIN",
        "CAP_MKNOD",
        "CAP_CHOWN",
        "CAP_FOWNER",
        "CAP_DAC_OVERRIDE",
    ]);
    let output = runtime.run(&bundle);
    output.assert_prints("1\nown files are written\n");
    assert!(bundle.rootfs().join("mine").exists());
}

#[test]
fn nodes_and_set_id_bits_are_the_containers_to_use() {
    let bundle = Bundle::busybox()
        .shell(
            "mknod /tmp/zero c 1 5 && head -c 2 /tmp/zero | wc -c; \
             cp /bin/busybox /tmp/mine && chown 1234 /tmp/mine && chmod 4755 /tmp/mine && \
             stat -c %a,%u /tmp/mine",
        )
        .capabilities(&["CAP_MKNOD", "CAP_CHOWN", "CAP_FOWNER", "CAP_FSETID"]);
    Runtime::from_environment()
        .run(&bundle)
        .assert_prints("2\n4755,1234\n");
}
