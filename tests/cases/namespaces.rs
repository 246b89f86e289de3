//! Namespaces of a container, inside its VM.

use std::fs;

use harness::{Background, Bundle, Runtime};

fn run(bundle: &Bundle) -> harness::Output {
    Runtime::from_environment().run(bundle)
}

#[test]
fn its_first_process_is_number_one() {
    run(&Bundle::busybox().shell("echo $$; ls -d /proc/[0-9]* | wc -l")).assert_prints("1\n3\n");
}

#[test]
fn network_has_loopback_only() {
    run(&Bundle::busybox().shell("ls /sys/class/net; cat /sys/class/net/lo/flags"))
        .assert_prints("lo\n0x9\n");
}

#[test]
fn network_behind_the_pid_is_not_the_hosts() {
    let runtime = Runtime::from_environment();
    let container = Background::created(&runtime, Bundle::busybox());
    let process = format!("/proc/{}", container.state()["pid"]);
    let namespace = fs::read_link(format!("{process}/ns/net")).unwrap();
    assert_ne!(namespace, fs::read_link("/proc/self/ns/net").unwrap());
    let routes = fs::read_to_string(format!("{process}/net/route")).unwrap();
    assert_eq!(routes.lines().nth(1), None, "{routes}");
    container.remove();
}

#[test]
fn cgroup_root_is_its_own() {
    let bundle = Bundle::busybox().args(&["cat", "/proc/self/cgroup"]);
    run(&bundle).assert_prints("0::/\n");
}

#[test]
fn users_are_mapped() {
    let bundle = Bundle::busybox()
        .shell("id -u; cat /proc/self/uid_map | tr -s ' '; touch /tmp/mine && stat -c %u /tmp/mine")
        .own_users(65536);
    std::os::unix::fs::chown(bundle.rootfs().join("tmp"), Some(100_000), Some(100_000)).unwrap();
    run(&bundle).assert_prints("0\n 0 100000 65536\n0\n");
    let owner = std::os::unix::fs::MetadataExt::uid(
        &fs::metadata(bundle.rootfs().join("tmp/mine")).unwrap(),
    );
    assert_eq!(owner, 100_000);
}
