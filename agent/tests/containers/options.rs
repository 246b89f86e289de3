//! The less common parts of a specification.

use serde_json::{Value, json};
use ttrpc::Code;

use crate::agent::{Agent, Ends, PATIENCE, process, refused, sh};

/// Maps all of the container's ids to those from `first` on.
fn map(spec: &mut Value, first: u32) {
    let map = json!([{"containerID": 0, "hostID": first, "size": 65536}]);
    spec["linux"]["uidMappings"] = map.clone();
    spec["linux"]["gidMappings"] = map;
}

/// Gives the image to the root of a user namespace.
fn own_rootfs(agent: &Agent, owner: u32) {
    let rootfs = agent.path("rootfs");
    let command = |name: &str, arguments: &[&str]| {
        let status = std::process::Command::new(name).args(arguments).status();
        assert!(status.unwrap().success());
    };
    let path = rootfs.to_str().unwrap();
    command("chown", &["-hR", &format!("{owner}:{owner}"), path]);
    let directory = rootfs.parent().unwrap().to_str().unwrap();
    command("chmod", &["711", directory]);
}

fn add_namespace(spec: &mut Value, namespace: Value) {
    let namespaces = spec["linux"]["namespaces"].as_array_mut().unwrap();
    namespaces.push(namespace);
}

fn add_mount(spec: &mut Value, mount: Value) {
    spec["mounts"].as_array_mut().unwrap().push(mount);
}

#[tokio::test]
async fn recursive_options_reach_the_mounts_below() {
    let mut agent = Agent::start().await;
    let volume = agent.path("volume");
    std::fs::create_dir_all(volume.join("below")).unwrap();
    let mounted = std::process::Command::new("mount")
        .args(["-t", "tmpfs", "tmpfs"])
        .arg(volume.join("below"))
        .status();
    assert!(mounted.unwrap().success());
    let mut spec = agent.spec(&sh("grep -E ' /(flat|deep)' /proc/self/mountinfo"));
    let mut bind = |at: &str, option: &str| {
        add_mount(
            &mut spec,
            json!({"destination": at, "type": "bind", "source": volume, "options": ["rbind", option, "rnosuid"]}),
        );
    };
    bind("/flat", "ro");
    bind("/deep", "rro");
    let output = agent.run(&spec).await;
    let unmounted = std::process::Command::new("umount")
        .arg(volume.join("below"))
        .status();
    assert!(unmounted.unwrap().success());
    let options = |at: &str| {
        let line = output
            .stdout
            .lines()
            .find(|line| line.split(' ').nth(4) == Some(at));
        let options = line.and_then(|line| line.split(' ').nth(5)).unwrap();
        (options.starts_with("ro,"), options.contains("nosuid"))
    };
    assert_eq!(options("/flat"), (true, true));
    assert_eq!(options("/flat/below"), (false, true));
    assert_eq!(options("/deep/below"), (true, true));
}

#[tokio::test]
async fn a_remount_changes_the_mount_that_is_there() {
    let mut agent = Agent::start().await;
    let mut spec = agent.spec(&sh("touch /dev/shm/x; touch /dev/y && echo fine"));
    add_mount(
        &mut spec,
        json!({"destination": "/dev/shm", "type": "tmpfs", "source": "x", "options": ["remount", "ro"]}),
    );
    let output = agent.run(&spec).await;
    assert_eq!(output.stdout, "fine\n");
    assert!(output.stderr.contains("Read-only"), "{}", output.stderr);
}

#[tokio::test]
async fn the_root_propagates_as_it_is_told() {
    let mut agent = Agent::start().await;
    for (propagation, expected) in [
        ("shared", "shared:"),
        ("rshared", "shared:"),
        ("unbindable", "unbindable"),
        ("runbindable", "unbindable"),
        ("private", ""),
        ("rprivate", ""),
        ("slave", ""),
        ("rslave", ""),
    ] {
        let mut spec = agent.spec(&sh(
            "grep ' / / ' /proc/self/mountinfo || head -n 1 /proc/self/mountinfo",
        ));
        spec["linux"]["rootfsPropagation"] = json!(propagation);
        let output = agent.run(&spec).await.stdout;
        let fields = output.split(" - ").next().unwrap().split(' ').skip(6);
        let fields: Vec<_> = fields
            .filter(|field| !field.starts_with("master:"))
            .collect();
        let fields = fields.join(" ");
        assert!(
            if expected.is_empty() {
                fields.is_empty()
            } else {
                fields.starts_with(expected)
            },
            "{propagation}: {output}"
        );
    }
    let mut spec = agent.spec(&["true"]);
    spec["linux"]["rootfsPropagation"] = json!("wild");
    let (_, message) = refused(agent.create("c", &spec, &Ends::default()).await);
    assert_eq!(message, "rootfsPropagation: \"wild\" is not valid");
}

#[tokio::test]
async fn clocks_of_a_time_namespace_are_ahead_for_init_and_exec() {
    const AHEAD: u64 = 1_000_000_000;
    let mut agent = Agent::start().await;
    let script = "read up rest < /proc/uptime; echo ${up%.*}";
    let mut spec = agent.spec(&sh(script));
    add_namespace(&mut spec, json!({"type": "time"}));
    spec["linux"]["timeOffsets"] =
        json!({"boottime": {"secs": AHEAD}, "monotonic": {"secs": 5, "nanosecs": 7}});
    let output = agent.run(&spec).await;
    let up: u64 = output.stdout.trim().parse().unwrap();
    assert!(up >= AHEAD, "{up}");
    spec["process"]["args"] = json!(["sleep", "100"]);
    agent.running(&spec).await;
    let output = agent.run_exec("c", &process(&sh(script))).await;
    let up: u64 = output.stdout.trim().parse().unwrap();
    assert!(up >= AHEAD, "{up} {}", output.stderr);
}

#[tokio::test]
async fn a_personality_is_that_of_init_and_exec() {
    let mut agent = Agent::start().await;
    let mut spec = agent.spec(&["busybox", "uname", "-m"]);
    spec["linux"]["personality"] = json!({"domain": "LINUX32"});
    assert_eq!(agent.run(&spec).await.stdout, "i686\n");
    spec["process"]["args"] = json!(["sleep", "100"]);
    agent.running(&spec).await;
    let command = process(&["busybox", "uname", "-m"]);
    assert_eq!(agent.run_exec("c", &command).await.stdout, "i686\n");
}

#[tokio::test]
async fn scheduler_and_io_priority_are_the_specifications() {
    let mut agent = Agent::start().await;
    let script = "busybox ionice -p $$; busybox chrt -p $$";
    let mut spec = agent.spec(&sh(script));
    spec["process"]["scheduler"] =
        json!({"policy": "SCHED_BATCH", "nice": 7, "flags": ["SCHED_RESET_ON_FORK"]});
    spec["process"]["ioPriority"] = json!({"class": "IOPRIO_CLASS_BE", "priority": 3});
    spec["process"]["args"] = json!(["sleep", "100"]);
    let pid = agent.running(&spec).await;
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<_> = stat.rsplit_once(')').unwrap().1.split(' ').collect();
    assert_eq!((fields[17], fields[39]), ("7", "3"), "nice and SCHED_BATCH");
    let mut command = process(&["busybox", "ionice", "-p", "1"]);
    let output = agent.run_exec("c", &command).await;
    assert_eq!(output.stdout, "best-effort: prio 3\n", "{}", output.stderr);
    command["scheduler"] = json!({"policy": "SCHED_FIFO", "priority": 2});
    command["args"] = json!(["cat", "/proc/self/stat"]);
    let output = agent.run_exec("c", &command).await;
    let fields: Vec<_> = output
        .stdout
        .rsplit_once(')')
        .unwrap()
        .1
        .split(' ')
        .collect();
    assert_eq!(
        (fields[38], fields[39]),
        ("2", "1"),
        "SCHED_FIFO of priority 2"
    );
}

#[tokio::test]
async fn an_exec_runs_on_the_cpus_that_it_is_given() {
    let mut agent = Agent::start().await;
    let spec = agent.spec(&["sleep", "100"]);
    agent.running(&spec).await;
    let mut command = process(&["grep", "Cpus_allowed_list", "/proc/self/status"]);
    command["execCPUAffinity"] = json!({"initial": "0", "final": "0"});
    let output = agent.run_exec("c", &command).await;
    assert_eq!(output.stdout, "Cpus_allowed_list:\t0\n");
    command["execCPUAffinity"] = json!({"final": "1000"});
    let exec = agent.exec("c", "e", &command, &Ends::default()).await;
    let (_, message) = refused(exec);
    assert_eq!(
        message,
        "cannot set process.execCPUAffinity to CPUs [1000]: invalid argument"
    );
}

#[tokio::test]
async fn namespaces_of_another_container_are_joined_by_path() {
    let mut agent = Agent::start().await;
    let mut spec = agent.spec(&["sleep", "100"]);
    let pid = agent.create("a", &spec, &Ends::default()).await.unwrap();
    agent.start_container("a").await.unwrap();
    let path = |name: &str| format!("/proc/{pid}/ns/{name}");
    spec["linux"]["namespaces"] = json!([
        {"type": "mount"},
        {"type": "cgroup", "path": path("cgroup")},
        {"type": "pid", "path": path("pid")},
        {"type": "ipc", "path": path("ipc")},
        {"type": "uts", "path": path("uts")},
        {"type": "network", "path": path("net")},
    ]);
    spec.as_object_mut().unwrap().remove("hostname");
    spec["process"]["args"] = json!(sh(
        "cat /proc/1/cmdline; for n in pid ipc uts net cgroup; do test /proc/1/ns/$n -ef /proc/self/ns/$n || echo $n; done"
    ));
    let caps = json!(["CAP_SYS_PTRACE"]);
    for set in ["bounding", "effective", "permitted"] {
        spec["process"]["capabilities"][set] = caps.clone();
    }
    let output = agent.run(&spec).await;
    assert_eq!(output.stdout, "sleep\u{0}100\u{0}", "{}", output.stderr);
}

#[tokio::test]
async fn nobody_outlives_a_first_process_that_is_not_number_one() {
    let mut agent = Agent::start().await;
    let mut spec = agent.spec(&["sleep", "100"]);
    let pid = agent.create("a", &spec, &Ends::default()).await.unwrap();
    agent.start_container("a").await.unwrap();
    spec["linux"]["namespaces"] =
        json!([{"type": "mount"}, {"type": "pid", "path": format!("/proc/{pid}/ns/pid")}]);
    spec.as_object_mut().unwrap().remove("hostname");
    spec["process"]["args"] = json!(sh("sleep 100 & exit 4"));
    agent.create("b", &spec, &Ends::default()).await.unwrap();
    agent.start_container("b").await.unwrap();
    assert_eq!(agent.exit("b", "").await.status, 4);
    let populated = || std::fs::read_to_string(agent.cgroup.join("b/cgroup.events")).unwrap();
    let emptied = async {
        while !populated().contains("populated 0") {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, emptied).await.unwrap();
}

#[tokio::test]
async fn a_user_namespace_of_another_container_is_joined_by_path() {
    let mut agent = Agent::start().await;
    own_rootfs(&agent, 100_000);
    let mut spec = agent.spec(&["sleep", "100"]);
    add_namespace(&mut spec, json!({"type": "user"}));
    map(&mut spec, 100_000);
    let pid = agent.create("a", &spec, &Ends::default()).await.unwrap();
    agent.start_container("a").await.unwrap();
    let mut other = agent.spec(&sh(
        "readlink /proc/self/ns/user; id -u; echo x > /dev/stdout",
    ));
    let user = json!({"type": "user", "path": format!("/proc/{pid}/ns/user")});
    add_namespace(&mut other, user);
    map(&mut other, 100_000);
    let output = agent.run(&other).await;
    let joined = std::fs::read_link(format!("/proc/{pid}/ns/user")).unwrap();
    let expected = format!("{}\n0\nx\n", joined.display());
    assert_eq!(output.stdout, expected, "{}", output.stderr);
}

#[tokio::test]
async fn start_hooks_run_in_the_container_before_its_program() {
    let mut agent = Agent::start().await;
    let mut spec = agent.spec(&["cat", "/tmp/state", "/tmp/env"]);
    spec["annotations"] = json!({"husk.bundle": "/the/bundle"});
    spec["hooks"] = json!({"startContainer": [
        {"path": "/bin/sh", "args": ["sh", "-c", "cat > /tmp/state; echo loud"]},
        {"path": "/bin/sh", "args": ["sh", "-c", "echo $WHO $TERM > /tmp/env"], "env": ["WHO=hook"], "timeout": 30},
    ]});
    agent.create("run", &spec, &Ends::default()).await.unwrap();
    assert!(!agent.path("rootfs/tmp/state").exists());
    agent.signal("run", 9, false).await.unwrap();
    agent.exit("run", "").await;
    agent.delete("run").await.unwrap();
    let output = agent.run(&spec).await;
    let (state, env) = output.stdout.rsplit_once('}').unwrap();
    let state: Value = serde_json::from_str(&format!("{state}}}")).unwrap();
    assert_eq!(state["id"], "run");
    assert_eq!(state["pid"], 1);
    assert_eq!(state["status"], "created");
    assert_eq!(state["bundle"], "/the/bundle");
    assert_eq!(env, "hook\n", "{}", output.stderr);
}

#[tokio::test]
async fn a_start_hook_that_fails_fails_the_start() {
    let mut agent = Agent::start().await;
    for (hook, why) in [
        (
            json!({"path": "/bin/sh", "args": ["sh", "-c", "echo no good >&2; exit 3"]}),
            "error running startContainer hook #0: /bin/sh: exit status: 3: no good",
        ),
        (
            json!({"path": "/bin/none"}),
            "error running startContainer hook #0: /bin/none: no such file or directory",
        ),
        (
            json!({"path": "/bin/sleep", "args": ["sleep", "100"], "timeout": 1}),
            "error running startContainer hook #0: /bin/sleep: did not end in time",
        ),
    ] {
        let mut spec = agent.spec(&["touch", "/tmp/begun"]);
        spec["hooks"] = json!({ "startContainer": [hook] });
        agent.create("c", &spec, &Ends::default()).await.unwrap();
        let (_, message) = refused(agent.start_container("c").await);
        assert_eq!(message, why);
        assert_eq!(agent.exit("c", "").await.status, 1);
        assert!(!agent.path("rootfs/tmp/begun").exists());
        agent.delete("c").await.unwrap();
    }
}

#[tokio::test]
async fn unknown_system_calls_are_left_out() {
    let mut agent = Agent::start().await;
    let mut spec = agent.spec(&sh("mkdir /tmp/x; echo alive"));
    spec["linux"]["seccomp"] = json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
        "flags": ["SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_SPEC_ALLOW"],
        "syscalls": [
            {"names": ["call_of_tomorrow"], "action": "SCMP_ACT_KILL_PROCESS"},
            {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 75},
        ],
    });
    let output = agent.run(&spec).await;
    assert_eq!(output.stdout, "alive\n");
    assert!(
        output.stderr.contains("Value too large"),
        "{}",
        output.stderr
    );
}

#[tokio::test]
async fn a_namespace_of_a_process_that_is_no_containers_is_not_joined() {
    let agent = Agent::start().await;
    let mut spec = agent.spec(&["true"]);
    let namespaces = spec["linux"]["namespaces"].as_array_mut().unwrap();
    namespaces.retain(|namespace| namespace["type"] != "ipc");
    let path = format!("/proc/{}/ns/ipc", std::process::id());
    add_namespace(&mut spec, json!({"type": "ipc", "path": path}));
    let (_, message) = refused(agent.create("c", &spec, &Ends::default()).await);
    let expected = format!("namespace {path} is of no process of a container here");
    assert_eq!(message, expected);
}

#[tokio::test]
async fn every_action_of_a_filter_acts() {
    let mut agent = Agent::start().await;
    for (action, status, stderr) in [
        ("SCMP_ACT_ALLOW", 0, ""),
        ("SCMP_ACT_LOG", 0, ""),
        ("SCMP_ACT_ERRNO", 1, "Operation not permitted"),
        ("SCMP_ACT_TRACE", 1, "Function not implemented"),
        ("SCMP_ACT_TRAP", 159, ""),
        ("SCMP_ACT_KILL", 159, ""),
        ("SCMP_ACT_KILL_THREAD", 159, ""),
        ("SCMP_ACT_KILL_PROCESS", 159, ""),
    ] {
        let script = "busybox mkdir /dev/shm/x; exit $?";
        let mut spec = agent.spec(&sh(script));
        spec["linux"]["seccomp"] = json!({
            "defaultAction": "SCMP_ACT_ALLOW",
            "syscalls": [{"names": ["mkdir", "mkdirat"], "action": action}],
        });
        let output = agent.run(&spec).await;
        assert_eq!(output.status, status, "{action}: {}", output.stderr);
        assert!(
            output.stderr.contains(stderr),
            "{action}: {}",
            output.stderr
        );
    }
}

#[tokio::test]
async fn what_is_refused_is_named_and_leaves_nothing() {
    let agent = Agent::start().await;
    for (pointer, value, what) in [
        (
            "/linux/sysctl",
            json!({"vm.swappiness": "5"}),
            "linux.sysctl vm.swappiness: belongs to no namespace, and so to the whole machine",
        ),
        (
            "/linux/intelRdt",
            json!({"closID": "x"}),
            "linux.intelRdt is not supported in a guest",
        ),
        (
            "/linux/seccomp",
            json!({"defaultAction": "SCMP_ACT_NOTIFY"}),
            "linux.seccomp with SCMP_ACT_NOTIFY is not supported in a guest",
        ),
        (
            "/linux/resources",
            json!({"blockIO": {"leafWeight": 5}}),
            "linux.resources.blockIO.leafWeight is not supported in a guest",
        ),
    ] {
        let mut spec = agent.spec(&["true"]);
        let key = pointer.rsplit('/').next().unwrap();
        spec["linux"][key] = value;
        let (code, message) = refused(agent.create("c", &spec, &Ends::default()).await);
        assert_eq!((code, message.as_str()), (Code::INVALID_ARGUMENT, what));
        assert!(!agent.cgroup.join("c").exists());
    }
}

#[tokio::test]
async fn limits_of_version_1_are_those_of_version_2() {
    let mut agent = Agent::start().await;
    let mut spec = agent.spec(&["grep", " /sys/fs/cgroup ", "/proc/self/mountinfo"]);
    spec["linux"]["resources"] = json!({
        "memory": {"limit": 33_554_432, "swap": 67_108_864, "reservation": 16_777_216, "kernel": 1_000_000, "swappiness": 10, "disableOOMKiller": true},
        "cpu": {"shares": 2, "quota": 30000, "period": 100_000, "burst": 10000},
        "unified": {"memory.high": "30000000"},
        "network": {"classID": 1},
    });
    agent.create("c", &spec, &Ends::default()).await.unwrap();
    let value = |file: &str| {
        let text = std::fs::read_to_string(agent.cgroup.join("c").join(file));
        text.unwrap().trim().to_owned()
    };
    assert_eq!(value("memory.swap.max"), "33554432");
    assert_eq!(value("memory.low"), "16777216");
    assert_eq!(value("memory.high"), "29999104", "whole pages");
    assert_eq!(value("cpu.weight"), "1");
    assert_eq!(value("cpu.max"), "30000 100000");
    assert_eq!(value("cpu.max.burst"), "10000");
    let output = agent.run(&spec).await;
    assert!(output.stdout.contains(" - cgroup2 "), "{}", output.stdout);
}

#[tokio::test]
async fn weights_of_block_io_are_no_error_without_a_scheduler_for_them() {
    let mut agent = Agent::start().await;
    let mut spec = agent.spec(&sh("cat /sys/fs/cgroup/io.weight 2>/dev/null || echo none"));
    spec["linux"]["resources"] = json!({"blockIO": {"weight": 500}});
    let output = agent.run(&spec).await;
    assert!(
        ["none\n", "default 4950\n", "default 4949\n"].contains(&&*output.stdout),
        "{} {}",
        output.stdout,
        output.stderr
    );
}
