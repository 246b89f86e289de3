//! Devices, control groups, system call filters, and the paths that are hidden.

use std::fs;

use harness::{Background, Bundle, Runtime, only_husk, skip};
use serde_json::{Value, json};

use super::{refused, run};

#[test]
fn default_devices_and_links_are_there() {
    let bundle = Bundle::busybox().shell(
        "cd /dev; stat -c '%n %F %t:%T %a' null zero full random urandom tty; \
         for l in fd stdin stdout stderr; do readlink $l; done; \
         stat -L -c '%F %t:%T' ptmx",
    );
    run(&bundle).assert_prints(
        "null character special file 1:3 666\nzero character special file 1:5 666\nfull character special file 1:7 666\n\
         random character special file 1:8 666\nurandom character special file 1:9 666\ntty character special file 5:0 666\n\
         /proc/self/fd\n/proc/self/fd/0\n/proc/self/fd/1\n/proc/self/fd/2\ncharacter special file 5:2\n",
    );
}

#[test]
fn default_file_systems_are_there() {
    let bundle = Bundle::busybox().shell("stat -f -c %T /proc /sys /dev/pts /dev/shm");
    run(&bundle).assert_prints("proc\nsysfs\ndevpts\ntmpfs\n");
}

#[test]
fn listed_devices_are_there_with_mode_and_owner() {
    let bundle = Bundle::busybox()
        .shell("stat -c '%n %F %t:%T %a %u:%g' /dev/mine /opt/full /opt/pipe; head -c 3 /dev/mine | wc -c")
        .capabilities(&["CAP_DAC_OVERRIDE"])
        .with(
            "/linux/devices",
            json!([
                {"path": "/dev/mine", "type": "c", "major": 1, "minor": 5, "fileMode": 0o640, "uid": 3, "gid": 4},
                {"path": "/opt/full", "type": "u", "major": 1, "minor": 7, "fileMode": 0o600},
                {"path": "/opt/pipe", "type": "p", "fileMode": 0o622, "uid": 5},
            ]),
        );
    run(&bundle).assert_prints(
        "/dev/mine character special file 1:5 640 3:4\n/opt/full character special file 1:7 600 0:0\n/opt/pipe fifo 0:0 622 5:0\n3\n",
    );
}

#[test]
fn a_device_where_another_file_is_is_refused() {
    only_husk("runc takes what is there");
    let device = json!([{"path": "/etc/passwd", "type": "c", "major": 1, "minor": 3}]);
    let bundle = Bundle::busybox().with("/linux/devices", device);
    refused(&bundle, "a device in the place of a file");
    let text = fs::read_to_string(bundle.rootfs().join("etc/passwd")).unwrap();
    assert!(text.starts_with("root:"), "{text}");
}

#[test]
fn device_rules_are_applied_in_the_listed_order() {
    let rule = |allow, minor, access| json!({"allow": allow, "type": "c", "major": 1, "minor": minor, "access": access});
    let bundle = Bundle::busybox()
        .shell(
            "mknod /tmp/kmsg c 1 11; mknod /tmp/port c 1 4; : <>/tmp/kmsg && echo allowed; \
             (: <>/tmp/port) 2>&1 | grep -o 'Operation not permitted'",
        )
        .capabilities(&["CAP_MKNOD", "CAP_SYS_RAWIO", "CAP_SYSLOG"])
        .with(
            "/linux/resources/devices",
            json!([
                {"allow": false, "access": "rwm"},
                // What they allow adds up.
                rule(true, 11, "r"),
                rule(true, 11, "w"),
                // One access of two is denied again.
                rule(true, 4, "rw"),
                rule(false, 4, "w"),
            ]),
        );
    run(&bundle).assert_prints("allowed\nOperation not permitted\n");
}

/// Whether the host's controllers are those of version 2, which a guest's always are.
fn is_version_2() -> bool {
    Runtime::is_husk() || fs::exists("/sys/fs/cgroup/cgroup.controllers").unwrap()
}

fn only_version_2() {
    if !is_version_2() {
        skip("the host's controllers are those of version 1");
    }
}

#[test]
fn limits_of_version_1_are_converted() {
    only_version_2();
    let bundle = Bundle::busybox()
        .shell(
            "cd /sys/fs/cgroup; grep . cpu.weight cpu.max memory.max memory.low memory.swap.max pids.max",
        )
        .with(
            "/linux/resources",
            json!({
                "cpu": {"shares": 262_144, "quota": 40000, "period": 80000},
                "memory": {"limit": 64 << 20, "reservation": 32 << 20, "swap": 96 << 20},
                "pids": {"limit": 99},
            }),
        );
    run(&bundle).assert_prints(
        "cpu.weight:10000\ncpu.max:40000 80000\nmemory.max:67108864\nmemory.low:33554432\n\
         memory.swap.max:33554432\npids.max:99\n",
    );
}

#[test]
fn unified_values_are_written_and_unknown_controllers_refused() {
    only_version_2();
    let with = |unified: Value| {
        Bundle::busybox()
            .shell("cd /sys/fs/cgroup; grep . memory.high pids.max")
            .with("/linux/resources/unified", unified)
    };
    run(&with(json!({"memory.high": "67108864", "pids.max": "88"})))
        .assert_prints("memory.high:67108864\npids.max:88\n");
    refused(&with(json!({"husk.max": "1"})), "an unknown controller");
}

#[test]
fn the_cgroup_is_where_the_configuration_says_until_delete() {
    let runtime = Runtime::from_environment();
    let path = format!("/{}-above/below", Runtime::new_id());
    let bundle = Bundle::busybox()
        .args(&["sleep", "1000"])
        .with("/linux/cgroupsPath", json!(path));
    let container = Background::started(&runtime, bundle);
    let root = if is_version_2() {
        "/sys/fs/cgroup"
    } else {
        "/sys/fs/cgroup/pids"
    };
    let processes = fs::read_to_string(format!("{root}{path}/cgroup.procs")).unwrap();
    assert!(!processes.is_empty());
    container.remove();
    assert!(!fs::exists(format!("{root}{path}")).unwrap());
    // Whether the path to it is made and removed is the runtime's affair.
    let _ = fs::remove_dir(format!("{root}{}", path.trim_end_matches("/below")));
}

#[test]
fn resource_director_technology_that_is_not_there_is_refused() {
    let bundle = Bundle::busybox().with(
        "/linux/intelRdt",
        json!({"closID": "group", "l3CacheSchema": "L3:0=f"}),
    );
    refused(&bundle, "a class of service");
}

fn filtered(seccomp: Value) -> Bundle {
    Bundle::busybox()
        .shell("mkdir /tmp/a; chmod 700 /tmp; chmod 711 /tmp; sleep 0 && echo slept")
        .with("/linux/seccomp", seccomp)
}

#[test]
fn filters_match_arguments_and_have_a_default_error() {
    let equal = |value: u32| json!([{"index": 1, "value": value, "op": "SCMP_CMP_EQ"}]);
    // runc 1.1 knows no flags.
    let flags: &[&str] = if Runtime::is_husk() {
        &["SECCOMP_FILTER_FLAG_LOG"]
    } else {
        &[]
    };
    let bundle = filtered(json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"],
        "flags": flags,
        "syscalls": [
            {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO"},
            {"names": ["chmod"], "action": "SCMP_ACT_ERRNO", "errnoRet": 28, "args": equal(0o711)},
        ],
    }));
    let output = run(&bundle);
    output.assert_prints("slept\n");
    let errors = output.errors();
    let lines: Vec<_> = errors.lines().collect();
    assert_eq!(lines.len(), 2, "{errors}");
    assert!(lines[0].ends_with("Operation not permitted"), "{errors}");
    assert!(lines[1].ends_with("No space left on device"), "{errors}");
}

#[test]
fn a_listener_that_no_rule_notifies_is_ignored() {
    let bundle = filtered(json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "architectures": ["SCMP_ARCH_X86_64"],
        "listenerPath": "/not/there.sock",
        "syscalls": [{"names": ["swapon"], "action": "SCMP_ACT_ERRNO"}],
    }));
    run(&bundle).assert_prints("slept\n");
}

#[test]
fn filters_that_are_none_are_refused() {
    let with = |action: &str, rule: Value| {
        filtered(
            json!({"defaultAction": action, "architectures": ["SCMP_ARCH_X86_64"], "syscalls": [rule]}),
        )
    };
    let rule = json!({"names": ["mkdir"], "action": "SCMP_ACT_HUSK"});
    refused(&with("SCMP_ACT_ALLOW", rule), "an unknown action");
    let rule = json!({"names": ["mkdir"], "action": "SCMP_ACT_ERRNO"});
    refused(&with("SCMP_ACT_HUSK", rule), "an unknown default action");
    // runc does not look at these.
    if Runtime::is_husk() {
        let rule = json!({"names": ["mkdir"], "action": "SCMP_ACT_KILL", "errnoRet": 5});
        refused(
            &with("SCMP_ACT_ALLOW", rule),
            "an error of an action that has none",
        );
        let rule = json!({"names": [], "action": "SCMP_ACT_ERRNO"});
        refused(&with("SCMP_ACT_ALLOW", rule), "a rule without names");
    }
}

#[test]
fn relative_paths_to_be_hidden_count_from_the_root() {
    let bundle = Bundle::busybox()
        .shell("wc -c <etc/passwd; touch root/new 2>/dev/null || echo refused")
        .with("/process/cwd", json!("/"))
        .with("/linux/maskedPaths", json!(["etc/passwd"]))
        .with("/linux/readonlyPaths", json!(["root"]));
    run(&bundle).assert_prints("0\nrefused\n");
}
