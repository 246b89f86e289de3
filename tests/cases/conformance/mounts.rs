//! Mounts: their order, their places, their options.

use std::fs;
use std::os::unix::fs::symlink;

use harness::{Bundle, Runtime, only_husk};
use serde_json::json;

use super::{refused, run, tmpfs};

/// The options that every runtime must know, but those of bind mounts and `remount`.
const OPTIONS: [&str; 37] = [
    "async",
    "atime",
    "defaults",
    "dev",
    "diratime",
    "dirsync",
    "exec",
    "iversion",
    "lazytime",
    "loud",
    "noatime",
    "nodev",
    "nodiratime",
    "noexec",
    "noiversion",
    "nolazytime",
    "norelatime",
    "nostrictatime",
    "nosuid",
    "private",
    "relatime",
    "ro",
    "rprivate",
    "rshared",
    "rslave",
    "runbindable",
    "rw",
    "shared",
    "silent",
    "slave",
    "strictatime",
    "suid",
    "sync",
    "unbindable",
    // Of the file system.
    "mode=700",
    "size=1m",
    "uid=5",
];

#[test]
fn they_are_made_in_the_listed_order() {
    let bundle = Bundle::busybox()
        .shell("stat -c %a /outer /outer/inner; ls /covered")
        .mount(tmpfs("/outer", &["mode=711"]))
        .mount(tmpfs("/outer/inner", &["mode=722"]))
        .mount(tmpfs("/covered/inner", &[]))
        .mount(tmpfs("/covered", &[]));
    run(&bundle).assert_prints("711\n722\n");
}

#[test]
fn destinations_are_looked_up_inside_the_root() {
    let outside = tempfile::tempdir().unwrap();
    let bundle = Bundle::busybox()
        .shell("grep -o ' /[^ ]*[ae]bove \\| /inside/here ' /proc/self/mountinfo; touch /inside/here/file")
        .mount(tmpfs("/link/here", &[]))
        .mount(tmpfs("/../../above", &[]))
        .mount(tmpfs("/host/there", &[]));
    fs::create_dir(bundle.rootfs().join("inside")).unwrap();
    symlink("/inside", bundle.rootfs().join("link")).unwrap();
    symlink(outside.path(), bundle.rootfs().join("host")).unwrap();
    run(&bundle).assert_prints(" /inside/here \n /above \n");
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
}

#[test]
fn a_relative_destination_counts_from_the_root() {
    let bundle = Bundle::busybox()
        .args(&["stat", "-c", "%a", "/srv/data"])
        .with("/process/cwd", json!("/tmp"))
        .mount(tmpfs("srv/data", &["mode=711"]));
    run(&bundle).assert_prints("711\n");
}

#[test]
fn a_relative_source_counts_from_the_bundle_and_needs_no_type() {
    let bundle = Bundle::busybox()
        .args(&["cat", "/data/file"])
        .mount(json!({"destination": "/data", "source": "volume", "options": ["bind"]}));
    fs::create_dir(bundle.path().join("volume")).unwrap();
    fs::write(bundle.path().join("volume/file"), "of the bundle\n").unwrap();
    run(&bundle).assert_prints("of the bundle\n");
}

#[test]
fn every_option_that_must_be_known_is_taken() {
    let mut bundle = Bundle::busybox().shell("grep -c ' /each/' /proc/self/mountinfo");
    // runc 1.1 does not know all of them.
    let known = |option: &&str| Runtime::is_husk() || *option != "defaults";
    let options: Vec<_> = OPTIONS.into_iter().filter(known).collect();
    for option in &options {
        bundle = bundle.mount(tmpfs(&format!("/each/{option}"), &[option]));
    }
    run(&bundle).assert_prints(&format!("{}\n", options.len()));
}

#[test]
fn options_do_what_they_say() {
    let shown = |path: &str| format!("grep ' {path} ' /proc/self/mountinfo | cut -d ' ' -f 6,7; ");
    let script: String = ["/off", "/on", "/again"].map(shown).concat();
    let contrary = [
        "ro", "rw", "nosuid", "suid", "nodev", "dev", "noexec", "exec", "noatime", "atime",
        "shared",
    ];
    let bundle = Bundle::busybox()
        .shell(&(script + "touch /again/x || true"))
        .mount(tmpfs(
            "/off",
            &["ro", "nosuid", "nodev", "noexec", "noatime"],
        ))
        .mount(tmpfs("/on", &contrary))
        .mount(tmpfs("/again", &[]))
        .mount(tmpfs("/again", &["remount", "ro"]));
    let output = run(&bundle);
    output.assert_status(0);
    let text = output.text();
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines[0], "ro,nosuid,nodev,noexec,noatime -");
    assert!(lines[1].starts_with("rw,relatime shared:"), "{text}");
    assert_eq!(lines[2], "ro,relatime -");
    assert!(output.errors().contains("Read-only"), "{output:?}");
}

#[test]
fn mounts_that_cannot_be_made_are_refused() {
    let mount = |value| Bundle::busybox().mount(value);
    refused(
        &mount(json!({"destination": "/x", "type": "nofs", "source": "x"})),
        "an unknown file system",
    );
    refused(
        &mount(tmpfs("/x", &["nosuchoption"])),
        "an unknown option of a file system",
    );
}

#[test]
fn an_id_mapped_mount_without_maps_is_refused() {
    only_husk("Debian's runc maps no mounts");
    let bind = json!({"destination": "/x", "type": "none", "source": "/bin", "options": ["bind", "idmap"]});
    let bundle = Bundle::busybox().mount(bind);
    refused(&bundle, "an id-mapped mount without maps");
}
