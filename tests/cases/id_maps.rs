//! Mounts through which files have other owners, and what is made through them. Debian's runc has none of this.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::Command;

use harness::{Bundle, Output, Runtime, only_husk};
use serde_json::{Value, json};

fn run(bundle: &Bundle) -> Output {
    Runtime::from_environment().run(bundle)
}

/// A bind mount whose files of user and group 0 and the nine next to them are seen as 3000 and so on.
fn mapped(source: &Path, destination: &str, options: &[&str]) -> Value {
    let map = json!([{"containerID": 0, "hostID": 3000, "size": 10}]);
    json!({"destination": destination, "type": "bind", "source": source, "options": options,
           "uidMappings": map, "gidMappings": map})
}

#[test]
fn files_have_other_owners_through_an_id_mapped_mount() {
    only_husk("Debian's runc maps no mounts");
    let host = tempfile::tempdir().unwrap();
    std::fs::write(host.path().join("file"), "").unwrap();
    std::os::unix::fs::chown(host.path(), Some(5), Some(5)).unwrap();
    let bundle = Bundle::busybox()
        .shell("touch /mapped/new && stat -c %u:%g /plain/file /mapped/file /mapped/new /mapped")
        .bind(host.path(), "/plain", &["bind"])
        .mount(mapped(host.path(), "/mapped", &["bind"]))
        .with("/process/user", json!({"uid": 3005, "gid": 3005}));
    run(&bundle).assert_prints("0:0\n3000:3000\n3005:3005\n3005:3005\n");
    let made = std::fs::metadata(host.path().join("new")).unwrap();
    assert_eq!((made.uid(), made.gid()), (5, 5));
}

#[test]
fn a_mount_takes_the_map_of_the_containers_user_namespace() {
    only_husk("Debian's runc maps no mounts");
    let host = tempfile::tempdir().unwrap();
    let bundle = Bundle::busybox()
        .shell("touch /mapped/new; stat -c %u /mapped /mapped/new; touch /plain/other || echo not mine")
        .own_users(65536)
        .bind(host.path(), "/mapped", &["rbind", "ridmap"])
        .bind(host.path(), "/plain", &["rbind"]);
    for name in ["mapped", "plain"] {
        std::fs::create_dir(bundle.rootfs().join(name)).unwrap();
    }
    run(&bundle).assert_prints("0\n0\nnot mine\n");
    let made = std::fs::metadata(host.path().join("new")).unwrap();
    assert_eq!(made.uid(), 0);
}

#[test]
fn owners_below_are_mapped_where_it_is_recursive() {
    only_husk("Debian's runc maps no mounts");
    let host = tempfile::tempdir().unwrap();
    let below = host.path().join("below");
    std::fs::create_dir(&below).unwrap();
    let other = tempfile::tempdir().unwrap();
    let mount = |words: &[&str]| {
        let status = Command::new("mount").args(words).arg(&below).status();
        assert!(status.unwrap().success());
    };
    mount(&["--bind", other.path().to_str().unwrap()]);
    let bundle = Bundle::busybox()
        .shell("stat -c %u /flat /flat/below /deep /deep/below")
        .mount(mapped(host.path(), "/flat", &["rbind", "idmap"]))
        .mount(mapped(host.path(), "/deep", &["rbind", "ridmap"]));
    let output = run(&bundle);
    let unmounted = Command::new("umount").arg(&below).status();
    assert!(unmounted.unwrap().success());
    output.assert_prints("3000\n0\n3000\n3000\n");
}

#[test]
fn what_cannot_be_mapped_is_said_to_be_so() {
    only_husk("Debian's runc maps no mounts");
    let host = tempfile::tempdir().unwrap();
    let mounted = Command::new("mount")
        .args(["-t", "ramfs", "ramfs"])
        .arg(host.path())
        .status();
    assert!(mounted.unwrap().success());
    let refused = run(&Bundle::busybox().mount(mapped(host.path(), "/m", &["bind"])));
    let unmounted = Command::new("umount").arg(host.path()).status();
    assert!(unmounted.unwrap().success());
    refused.assert_refused(&["its file system cannot be id-mapped"]);
    let mut tmpfs = mapped(Path::new("tmpfs"), "/m", &[]);
    tmpfs["type"] = json!("tmpfs");
    run(&Bundle::busybox().mount(tmpfs)).assert_refused(&["an id-mapped mount of /m"]);
}
