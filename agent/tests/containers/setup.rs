//! What a container's specification says is what its processes find.

use std::os::unix::fs::PermissionsExt;

use agent_api::agent::event;
use serde_json::{Value, json};

use crate::agent::{Agent, Ends, process, refused, sh};

fn status_of<'s>(status: &'s str, field: &str) -> &'s str {
    let line = status
        .lines()
        .find(|line| line.starts_with(field))
        .unwrap_or_else(|| panic!("{field} in {status}"));
    line.split_once(':').unwrap().1.trim()
}

fn seccomp() -> Value {
    json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "architectures": ["SCMP_ARCH_X86_64"],
        "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 75}],
    })
}

#[tokio::test]
async fn user_groups_umask_and_home_are_the_specifications() {
    let mut agent = Agent::start().await;
    let mut spec = agent.spec(&sh("id; umask; echo $HOME; pwd"));
    spec["process"]["user"] =
        json!({"uid": 1000, "gid": 1001, "additionalGids": [5, 6], "umask": 0o027});
    spec["process"]["cwd"] = json!("/made/for/it");
    let output = agent.run(&spec).await;
    assert_eq!(
        output.stdout, "uid=1000(user) gid=1001 groups=5,6\n0027\n/home/user\n/made/for/it\n",
        "{}",
        output.stderr
    );
}

#[tokio::test]
async fn capabilities_and_no_new_privs_are_the_specifications() {
    let mut agent = Agent::start().await;
    let mut spec = agent.spec(&["cat", "/proc/self/status"]);
    let two = ["CAP_CHOWN", "CAP_KILL"];
    spec["process"]["capabilities"] = json!({"bounding": two, "effective": two, "permitted": two, "inheritable": two, "ambient": two});
    spec["process"]["user"] = json!({"uid": 1000, "gid": 1000});
    let status = agent.run(&spec).await.stdout;
    for set in ["CapBnd", "CapEff", "CapPrm", "CapInh", "CapAmb"] {
        assert_eq!(status_of(&status, set), "0000000000000021", "{set}");
    }
    assert_eq!(status_of(&status, "NoNewPrivs"), "1");
}

#[tokio::test]
async fn without_capabilities_there_are_none() {
    let mut agent = Agent::start().await;
    let mut spec = agent.spec(&["cat", "/proc/self/status"]);
    spec["process"]
        .as_object_mut()
        .unwrap()
        .remove("capabilities");
    let status = agent.run(&spec).await.stdout;
    assert_eq!(status_of(&status, "CapEff"), "0000000000000000");
    assert_eq!(status_of(&status, "CapBnd"), "0000000000000000");
}

#[tokio::test]
async fn seccomp_is_applied_to_init_and_exec() {
    for no_new_privileges in [true, false] {
        let mut agent = Agent::start().await;
        let script = "grep Seccomp: /proc/self/status; mkdir /tmp/x";
        let mut spec = agent.spec(&sh(script));
        spec["linux"]["seccomp"] = seccomp();
        spec["process"]["noNewPrivileges"] = json!(no_new_privileges);
        let output = agent.run(&spec).await;
        assert_eq!(status_of(&output.stdout, "Seccomp"), "2");
        assert!(
            output.stderr.contains("Value too large"),
            "errno 75 of the filter: {}",
            output.stderr
        );
        spec["process"]["args"] = json!(["sleep", "100"]);
        agent.running(&spec).await;
        let mut command = process(&sh(script));
        command["noNewPrivileges"] = json!(no_new_privileges);
        let output = agent.run_exec("c", &command).await;
        assert_eq!(status_of(&output.stdout, "Seccomp"), "2");
        assert!(
            output.stderr.contains("Value too large"),
            "{}",
            output.stderr
        );
    }
}

#[tokio::test]
async fn a_read_only_root_is_read_only_and_mounts_are_not() {
    let mut agent = Agent::start().await;
    let mut spec = agent.spec(&sh("touch /x; touch /dev/shm/y && echo fine"));
    spec["root"]["readonly"] = json!(true);
    let output = agent.run(&spec).await;
    assert_eq!(output.stdout, "fine\n");
    assert!(output.stderr.contains("Read-only"), "{}", output.stderr);
}

#[tokio::test]
async fn masked_and_read_only_paths_are_so() {
    let mut agent = Agent::start().await;
    let mut spec = agent.spec(&sh(
        "wc -c </proc/uptime; ls /sys/kernel && echo listed; echo 1 > /proc/sys/kernel/hostname; touch /tmp/x",
    ));
    // What has something in it on every kernel.
    spec["linux"]["maskedPaths"] = json!(["/proc/uptime", "/sys/kernel", "/no/such/path"]);
    spec["linux"]["readonlyPaths"] = json!(["proc/sys", "tmp"]);
    let output = agent.run(&spec).await;
    assert_eq!(output.stdout, "0\nlisted\n");
    assert_eq!(
        output.stderr.matches("Read-only").count(),
        2,
        "{}",
        output.stderr
    );
}

#[tokio::test]
async fn nothing_is_ignored_or_blocked_and_keys_are_the_containers() {
    let mut agent = Agent::start().await;
    let mut spec = agent.spec(&["sleep", "1000"]);
    spec["linux"]["maskedPaths"] = json!([]);
    agent.running(&spec).await;
    let asked = "grep -hE '^Sig(Ign|Blk):' /proc/1/status /proc/self/status; grep -o '_ses.c:' /proc/keys | uniq";
    let output = agent.run_exec("c", &process(&sh(asked))).await;
    let none = "SigBlk:\t0000000000000000\nSigIgn:\t0000000000000000\n";
    let expected = [none, none, "_ses.c:\n"].concat();
    assert_eq!(output.stdout, expected, "{}", output.stderr);
}

#[tokio::test]
async fn mounts_have_their_options() {
    let mut agent = Agent::start().await;
    let volume = agent.path("volume");
    std::fs::create_dir(&volume).unwrap();
    std::fs::write(volume.join("file"), "inside").unwrap();
    let mut spec = agent.spec(&sh("cat /data/file /one; touch /data/new; grep -E ' /(scratch|data|one) ' /proc/self/mountinfo"));
    let mounts = spec["mounts"].as_array_mut().unwrap();
    mounts.push(json!({"destination": "/data", "type": "bind", "source": volume, "options": ["rbind", "ro", "rprivate", "nosuid"]}));
    mounts.push(json!({"destination": "/one", "type": "bind", "source": volume.join("file"), "options": ["bind", "ro"]}));
    mounts.push(json!({"destination": "/scratch", "type": "tmpfs", "source": "tmpfs", "options": ["size=64k", "mode=700", "noexec", "noatime"]}));
    let output = agent.run(&spec).await;
    assert!(
        output.stdout.starts_with("insideinside"),
        "{} {}",
        output.stdout,
        output.stderr
    );
    assert!(output.stderr.contains("Read-only"), "{}", output.stderr);
    let line = |at: &str| {
        output
            .stdout
            .lines()
            .find(|line| line.contains(at))
            .unwrap_or_default()
            .to_owned()
    };
    assert!(
        line(" /scratch ").contains("noexec,noatime")
            && line(" /scratch ").contains("size=64k,mode=700"),
        "{}",
        output.stdout
    );
    assert!(line(" /data ").contains(" ro,nosuid"), "{}", output.stdout);
}

/// An extended attribute that every tmpfs can have. Needs the capability that tests run with.
const CAPABILITY: &std::ffi::CStr = c"security.capability";

#[tokio::test]
async fn tmpcopyup_keeps_what_is_covered() {
    let mut agent = Agent::start().await;
    let etc = agent.path("rootfs/etc");
    std::fs::create_dir(etc.join("deep")).unwrap();
    std::fs::write(etc.join("deep/one"), "one").unwrap();
    std::fs::hard_link(etc.join("deep/one"), etc.join("two")).unwrap();
    // cap_net_raw=ep
    let value = [
        1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
    ];
    rustix::fs::setxattr(
        etc.join("deep/one"),
        CAPABILITY,
        &value,
        rustix::fs::XattrFlags::empty(),
    )
    .unwrap();
    let mut spec = agent.spec(&["sleep", "1000"]);
    spec["mounts"].as_array_mut().unwrap().push(json!({"destination": "/etc", "type": "tmpfs", "source": "tmpfs", "options": ["tmpcopyup"]}));
    let pid = agent.running(&spec).await;
    let asked = "cat /etc/passwd | wc -l; touch /etc/new && stat -c %a /etc; stat -c %h /etc/two; test /etc/two -ef /etc/deep/one && echo same";
    let output = agent.run_exec("c", &process(&sh(asked))).await;
    assert_eq!(output.stdout, "2\n755\n2\nsame\n", "{}", output.stderr);
    let copy = format!("/proc/{pid}/root/etc/two");
    let mut copied = [0; 64];
    let length = rustix::fs::getxattr(copy, CAPABILITY, &mut copied).unwrap();
    assert_eq!(copied[..length], value);
    assert!(!agent.path("rootfs/etc/new").exists());
}

#[tokio::test]
async fn an_unknown_mount_option_is_refused() {
    let agent = Agent::start().await;
    let mut spec = agent.spec(&["true"]);
    spec["mounts"].as_array_mut().unwrap().push(json!({"destination": "/x", "type": "bind", "source": "/tmp", "options": ["bind", "wobble"]}));
    let (_, message) = refused(agent.create("c", &spec, &Ends::default()).await);
    assert_eq!(message, "mount of /x: \"wobble\" is not a known option");
}

#[tokio::test]
async fn a_link_in_the_image_does_not_lead_a_mount_out() {
    let mut agent = Agent::start().await;
    let outside = agent.path("outside");
    std::fs::create_dir(&outside).unwrap();
    std::os::unix::fs::symlink(&outside, agent.path("rootfs/way")).unwrap();
    let mut spec = agent.spec(&sh("echo x > /way/in/file; ls /way/in"));
    spec["mounts"]
        .as_array_mut()
        .unwrap()
        .push(json!({"destination": "/way/in", "type": "tmpfs", "source": "tmpfs"}));
    // The link is absolute, and counts from the container's root.
    let output = agent.run(&spec).await;
    assert_eq!(output.stdout, "file\n", "{}", output.stderr);
    assert!(std::fs::read_dir(&outside).unwrap().next().is_none());
}

#[tokio::test]
async fn devices_are_there_and_others_are_denied() {
    let mut agent = Agent::start().await;
    // Neither needs a capability to be opened, so that nothing but the rules can refuse it.
    let mut spec = agent.spec(&sh(
        "ls /dev; (: </dev/fuse2) && echo opened; mknod /tmp/other c 10 228; (: </tmp/other); \
         mknod /tmp/fuse c 10 229; (: >>/tmp/fuse); head -c 3 /dev/zero | wc -c",
    ));
    spec["linux"]["devices"] = json!([{"path": "/dev/fuse2", "type": "c", "major": 10, "minor": 229, "fileMode": 0o600, "uid": 0, "gid": 0}]);
    spec["linux"]["resources"]["devices"] = json!([
        {"allow": false, "access": "rwm"},
        {"allow": true, "type": "c", "major": 10, "minor": 229, "access": "rm"},
    ]);
    let output = agent.run(&spec).await;
    for name in [
        "null", "zero", "full", "random", "urandom", "tty", "ptmx", "fd", "stdin", "stdout",
        "stderr", "fuse2",
    ] {
        assert!(
            output.stdout.lines().any(|line| line == name),
            "{name} in {}",
            output.stdout
        );
    }
    assert!(output.stdout.ends_with("opened\n3\n"), "{}", output.stdout);
    for refused in ["open /tmp/other", "create /tmp/fuse"] {
        let line = format!("{refused}: Operation not permitted");
        assert!(output.stderr.contains(&line), "{}", output.stderr);
    }
}

#[tokio::test]
async fn limits_are_those_of_the_cgroup() {
    let mut agent = Agent::start().await;
    let mut spec = agent.spec(&["sleep", "100"]);
    spec["linux"]["resources"]["memory"] = json!({"limit": 33_554_432, "swap": 33_554_432});
    spec["linux"]["resources"]["pids"] = json!({"limit": 11});
    spec["linux"]["resources"]["cpu"] = json!({"quota": 50000, "period": 100_000, "shares": 1024});
    agent.create("c", &spec, &Ends::default()).await.unwrap();
    let value = |file: &str| {
        std::fs::read_to_string(agent.cgroup.join("c").join(file))
            .unwrap()
            .trim()
            .to_owned()
    };
    assert_eq!(value("memory.max"), "33554432");
    assert_eq!(value("pids.max"), "11");
    assert_eq!(value("cpu.max"), "50000 100000");
    assert_eq!(value("cpu.weight"), "100");
    agent.start_container("c").await.unwrap();
    let output = agent
        .run_exec("c", &process(&["cat", "/sys/fs/cgroup/pids.max"]))
        .await;
    assert_eq!(output.stdout, "11\n", "{}", output.stderr);
}

#[tokio::test]
async fn a_kill_for_memory_is_told_before_the_exit_it_caused() {
    let mut agent = Agent::start().await;
    let mut spec = agent.spec(&sh("x=a; while :; do x=$x$x; done"));
    spec["linux"]["resources"]["memory"] = json!({"limit": 16_777_216, "swap": 16_777_216});
    agent.running(&spec).await;
    assert!(matches!(agent.event().await, event::Kind::Oom(oom) if oom.container_id == "c"));
    assert!(matches!(agent.event().await, event::Kind::Exit(exit) if exit.status == 137));
}

#[tokio::test]
async fn rlimits_and_oom_score_are_the_specifications() {
    let mut agent = Agent::start().await;
    let mut spec = agent.spec(&sh("ulimit -n; cat /proc/self/oom_score_adj"));
    spec["process"]["rlimits"] = json!([{"type": "RLIMIT_NOFILE", "soft": 77, "hard": 99}]);
    spec["process"]["oomScoreAdj"] = json!(321);
    assert_eq!(agent.run(&spec).await.stdout, "77\n321\n");
}

#[tokio::test]
async fn sysctls_are_those_of_the_containers_namespaces() {
    let mut agent = Agent::start().await;
    let mut spec = agent.spec(&[
        "cat",
        "/proc/sys/net/ipv4/ip_unprivileged_port_start",
        "/proc/sys/kernel/shm_rmid_forced",
    ]);
    spec["linux"]["sysctl"] =
        json!({"net.ipv4.ip_unprivileged_port_start": "80", "kernel.shm_rmid_forced": "1"});
    assert_eq!(agent.run(&spec).await.stdout, "80\n1\n");
    let outside = std::fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start").unwrap();
    assert_ne!(outside, "80\n");
}

#[tokio::test]
async fn a_network_namespace_has_loopback() {
    let mut agent = Agent::start().await;
    let spec = agent.spec(&["ip", "addr"]);
    let output = agent.run(&spec).await;
    assert!(
        output.stdout.contains("127.0.0.1/8") && output.stdout.contains("UP"),
        "{}",
        output.stdout
    );
}

#[tokio::test]
async fn a_user_namespace_maps_ids_for_init_and_exec() {
    let mut agent = Agent::start().await;
    let rootfs = agent.path("rootfs");
    assert!(
        std::process::Command::new("chown")
            .args(["-hR", "100000:100000"])
            .arg(&rootfs)
            .status()
            .unwrap()
            .success()
    );
    assert!(
        std::process::Command::new("chmod")
            .arg("711")
            .arg(rootfs.parent().unwrap())
            .status()
            .unwrap()
            .success()
    );
    let script = "id -u; cat /proc/self/uid_map; echo x > /dev/null && echo null; touch /made; echo again > /dev/stdout";
    let mut spec = agent.spec(&sh(script));
    spec["linux"]["namespaces"]
        .as_array_mut()
        .unwrap()
        .push(json!({"type": "user"}));
    let map = json!([{"containerID": 0, "hostID": 100_000, "size": 65536}]);
    spec["linux"]["uidMappings"] = map.clone();
    spec["linux"]["gidMappings"] = map;
    let output = agent.run(&spec).await;
    let lines: Vec<String> = output
        .stdout
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
        .collect();
    assert_eq!(
        lines,
        ["0", "0 100000 65536", "null", "again"],
        "{}",
        output.stderr
    );
    let made = std::fs::metadata(rootfs.join("made")).unwrap();
    assert_eq!(std::os::unix::fs::MetadataExt::uid(&made), 100_000);
    spec["process"]["args"] = json!(["sleep", "100"]);
    agent.running(&spec).await;
    let mut command = process(&sh("id -u; cat /proc/self/uid_map; echo x > /dev/stdout"));
    command["user"] = json!({"uid": 1000, "gid": 1000});
    let output = agent.run_exec("c", &command).await;
    let lines: Vec<String> = output
        .stdout
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
        .collect();
    assert_eq!(lines, ["1000", "0 100000 65536", "x"], "{}", output.stderr);
}

#[tokio::test]
async fn nothing_of_the_agent_is_left_open_in_the_program() {
    let mut agent = Agent::start().await;
    let spec = agent.spec(&sh("ls /proc/self/fd"));
    assert_eq!(
        agent.run(&spec).await.stdout,
        "0\n1\n2\n3\n",
        "3 is the directory that ls reads"
    );
}

#[tokio::test]
async fn a_tmpfs_has_the_mode_of_the_directory_that_it_covers_unless_it_is_given_one() {
    let mut agent = Agent::start().await;
    let covered = agent.path("rootfs/home/user");
    std::fs::set_permissions(&covered, std::fs::Permissions::from_mode(0o2750)).unwrap();
    let mut spec = agent.spec(&["stat", "-c", "%a", "/home/user", "/given", "/missing"]);
    std::fs::create_dir(agent.path("rootfs/given")).unwrap();
    let tmpfs = |at: &str, options: &[&str]| json!({"destination": at, "type": "tmpfs", "source": "tmpfs", "options": options});
    spec["mounts"].as_array_mut().unwrap().extend([
        tmpfs("/home/user", &[]),
        tmpfs("/given", &["mode=711"]),
        tmpfs("/missing", &[]),
    ]);
    assert_eq!(agent.run(&spec).await.stdout, "2750\n711\n1777\n");
}

#[tokio::test]
async fn a_read_only_tmpfs_has_room_for_mounts_below_it() {
    let mut agent = Agent::start().await;
    let mut spec = agent.spec(&sh(
        "touch /top/below/x && echo written; touch /top/x 2>/dev/null || echo refused",
    ));
    let tmpfs = |at: &str, options: &[&str]| json!({"destination": at, "type": "tmpfs", "source": "tmpfs", "options": options});
    let mounts = spec["mounts"].as_array_mut().unwrap();
    mounts.extend([tmpfs("/top", &["ro"]), tmpfs("/top/below", &[])]);
    assert_eq!(agent.run(&spec).await.stdout, "written\nrefused\n");
}
