//! A container runs under a Linux kernel of its own.

use harness::{Bundle, Runtime, only_husk};

#[test]
fn kernel_is_husks_and_not_the_hosts() {
    only_husk("runc has no VM");
    let output = Runtime::from_environment().run(&Bundle::busybox().args(&["uname", "-r"]));
    output.assert_status(0);
    let host = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    assert_ne!(output.text().trim(), host.trim());
    output.assert_prints_part("-husk");
}

#[test]
fn files_are_those_of_the_root_file_system() {
    let bundle = Bundle::busybox().shell("cat /etc/mark; echo written >/etc/back");
    std::fs::write(bundle.rootfs().join("etc/mark"), "here\n").unwrap();
    Runtime::from_environment()
        .run(&bundle)
        .assert_prints("here\n");
    assert_eq!(
        std::fs::read_to_string(bundle.rootfs().join("etc/back")).unwrap(),
        "written\n"
    );
}

#[test]
fn clock_is_the_hosts() {
    let output = Runtime::from_environment().run(&Bundle::busybox().args(&["date", "+%s"]));
    output.assert_status(0);
    let guest: i64 = output.text().trim().parse().unwrap();
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap();
    let host = i64::try_from(now.as_secs()).unwrap();
    assert!((host - guest).abs() < 60, "guest {guest}, host {host}");
}
