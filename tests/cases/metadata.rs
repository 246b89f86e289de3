//! Files on the share behave as a container's files must, although another kernel keeps them. The checks are the probe's.

use std::os::unix::fs::MetadataExt;

use harness::{Bundle, Output, Runtime};

fn probe(check: &str) -> (Bundle, Output) {
    let bundle = Bundle::busybox()
        .probe(env!("CARGO_BIN_EXE_probe"), check)
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
    let output = Runtime::from_environment().run(&bundle);
    (bundle, output)
}

fn holds(check: &str) {
    probe(check).1.assert_prints(&format!("{check} holds\n"));
}

#[test]
fn owner_changes_and_the_host_sees_it() {
    let (bundle, output) = probe("owner");
    output.assert_status(0);
    let found = std::fs::metadata(bundle.rootfs().join("work/owned")).unwrap();
    assert_eq!((found.uid(), found.gid()), (1234, 4321));
}

#[test]
fn modes_with_set_user_set_group_and_sticky() {
    let (bundle, output) = probe("modes");
    output.assert_status(0);
    let found = std::fs::metadata(bundle.rootfs().join("work/mode")).unwrap();
    assert_eq!(found.mode() & 0o7777, 0o7751);
}

#[test]
fn a_write_takes_set_user_away() {
    holds("set-user-is-dropped");
}

#[test]
fn extended_attributes() {
    holds("attributes");
}

#[test]
fn hard_and_symbolic_links() {
    holds("links");
}

#[test]
fn a_rename_replaces() {
    holds("rename");
}

#[test]
fn a_file_lives_on_while_it_is_open() {
    holds("unlinked");
}

#[test]
fn shared_and_private_mappings() {
    holds("mappings");
}

#[test]
fn direct_input_and_output() {
    holds("direct");
}

#[test]
fn appends_of_two_writers_do_not_overwrite() {
    holds("append");
}

#[test]
fn locks_exclude() {
    holds("locks");
}

#[test]
fn sparse_files_stay_sparse() {
    let (bundle, output) = probe("sparse");
    output.assert_prints("sparse holds\n");
    let found = std::fs::metadata(bundle.rootfs().join("work/sparse")).unwrap();
    assert_eq!(found.len(), (1 << 30) + 1);
    assert!(found.blocks() < 1024, "{} blocks", found.blocks());
}

#[test]
fn ten_thousand_files_in_a_folder() {
    let (bundle, output) = probe("many");
    output.assert_prints("many holds\n");
    assert_eq!(
        std::fs::read_dir(bundle.rootfs().join("work"))
            .unwrap()
            .count(),
        10_000
    );
}

#[test]
fn names_of_255_bytes() {
    holds("long-names");
}

#[test]
fn names_that_are_not_utf_8() {
    holds("odd-names");
}

#[test]
fn special_files() {
    holds("special");
}

#[test]
fn times() {
    holds("times");
}

#[test]
fn permissions_are_checked_for_other_users() {
    holds("permissions");
}
