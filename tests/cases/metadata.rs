//! Files on the share behave as a container's files must, although another kernel keeps them. The checks are the probe's
//! (`tests/guest/checks.rs`), which one container makes one after another.

use std::fs;
use std::os::unix::fs::MetadataExt;

use harness::{Bundle, Runtime};

const CHECKS: [&str; 18] = [
    "owner",
    "modes",
    "set-user-is-dropped",
    "attributes",
    "links",
    "rename",
    "unlinked",
    "mappings",
    "direct",
    "append",
    "locks",
    "sparse",
    "many",
    "long-names",
    "odd-names",
    "special",
    "times",
    "permissions",
];

#[test]
fn files_behave_and_the_host_sees_them_as_the_container_does() {
    let bundle = Bundle::busybox()
        .probe(env!("CARGO_BIN_EXE_probe"), &CHECKS)
        .capabilities(&[
            "CAP_CHOWN",
            "CAP_DAC_OVERRIDE",
            "CAP_FOWNER",
            "CAP_FSETID",
            "CAP_MKNOD",
            "CAP_SETFCAP",
            "CAP_SETGID",
            "CAP_SETUID",
        ]);
    let many = bundle.rootfs().join("work/many");
    fs::create_dir_all(&many).unwrap();
    for number in 0..9_800 {
        fs::File::create(many.join(format!("file-{number}"))).unwrap();
    }
    let output = Runtime::from_environment().run(&bundle);
    output.assert_prints(&CHECKS.map(|check| format!("{check} holds\n")).concat());

    let seen = |path: &str| fs::metadata(bundle.rootfs().join("work").join(path)).unwrap();
    let owned = seen("owner/owned");
    assert_eq!((owned.uid(), owned.gid()), (1234, 4321));
    assert_eq!(seen("modes/mode").mode() & 0o7777, 0o7751);
    let sparse = seen("sparse/sparse");
    assert_eq!(sparse.len(), (1 << 30) + 1);
    assert!(sparse.blocks() < 1024, "{} blocks", sparse.blocks());
    assert_eq!(fs::read_dir(many).unwrap().count(), 10_000);
}
