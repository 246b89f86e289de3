//! What a plan is for what a specification says.

use serde_json::{Value, json};

use super::*;

const NO_SIZE: WindowSize = WindowSize {
    width: 0,
    height: 0,
};

fn plan(spec: &Value, size: WindowSize) -> Result<Plan, PlanError> {
    let place = Place {
        id: "c",
        cgroup: Path::new("/cgroup/c"),
    };
    container(spec.to_string().as_bytes(), place, size)
}

fn spec() -> Value {
    json!({
        "ociVersion": "1.2.0",
        "process": {"args": ["true"], "cwd": "/", "env": [], "user": {"uid": 0, "gid": 0}},
        "root": {"path": "/rootfs"},
        "linux": {"namespaces": [{"type": "mount"}, {"type": "pid"}]},
    })
}

fn read(spec: &Value) -> Result<(Container, Process), PlanError> {
    let plan = plan(spec, NO_SIZE)?;
    match plan.entry {
        Entry::Create(container) => Ok((*container, plan.process)),
        Entry::Join(_) => panic!("a container is created"),
    }
}

fn refusal(spec: &Value) -> String {
    read(spec).expect_err("refused").to_string()
}

fn mount(options: &[&str], kind: &str) -> Result<Mount, PlanError> {
    let mut spec = spec();
    spec["mounts"] =
        json!([{"destination": "/m", "type": kind, "source": "/s", "options": options}]);
    Ok(read(&spec)?.0.mounts.remove(0))
}

#[test]
fn namespaces_without_a_path_are_new_and_others_are_joined() {
    let mut spec = spec();
    spec["linux"]["namespaces"] =
        json!([{"type": "mount"}, {"type": "uts", "path": ""}, {"type": "ipc", "path": "/ipc"}]);
    let (container, _) = read(&spec).unwrap();
    assert_eq!(container.unshare, Namespaces::MOUNT.with(Namespaces::UTS));
    assert_eq!(container.join.len(), 1);
    assert_eq!(container.join[0].1, Path::new("/ipc"));
}

#[test]
fn a_container_has_a_mount_namespace_of_its_own() {
    let mut spec = spec();
    spec["linux"]["namespaces"] = json!([{"type": "pid"}]);
    assert_eq!(
        refusal(&spec),
        "a container without a mount namespace of its own is not supported in a guest"
    );
}

#[test]
fn the_last_value_of_a_variable_counts_and_is_passed_once() {
    let mut spec = spec();
    spec["process"]["env"] = json!(["A=1", "B=2", "A=3", "B", "AB=4"]);
    let (_, process) = read(&spec).unwrap();
    assert_eq!(process.env, ["A=3", "B", "AB=4"]);
}

#[test]
fn a_user_namespace_needs_maps() {
    let mut spec = spec();
    spec["linux"]["namespaces"] = json!([{"type": "mount"}, {"type": "user"}]);
    assert!(refusal(&spec).contains("uidMappings"));
    spec["linux"]["uidMappings"] = json!([{"containerID": 0, "hostID": 1000, "size": 10}]);
    spec["linux"]["gidMappings"] = json!([{"containerID": 0, "hostID": 2000, "size": 10}]);
    let maps = read(&spec).unwrap().0.id_maps.unwrap();
    assert_eq!(IdMap::outside(&maps.uids, 9), Some(1009));
    assert_eq!(IdMap::outside(&maps.uids, 10), None);
    assert_eq!(IdMap::outside(&maps.gids, 0), Some(2000));
}

#[test]
fn an_id_beyond_all_ids_is_not_mapped() {
    let map = IdMap {
        inside: 0,
        outside: u32::MAX,
        size: u32::MAX,
    };
    assert_eq!(IdMap::outside(&[map], 1), None);
}

#[test]
fn a_listed_device_takes_the_place_of_the_default_one() {
    let mut spec = spec();
    spec["linux"]["devices"] =
        json!([{"path": "/dev/null", "type": "c", "major": 1, "minor": 3, "fileMode": 0o600}]);
    let (container, _) = read(&spec).unwrap();
    let nulls: Vec<_> = container
        .devices
        .iter()
        .filter(|device| device.path == Path::new("/dev/null"))
        .collect();
    assert_eq!(nulls.len(), 1);
    assert_eq!(nulls[0].mode, 0o600);
    assert_eq!(container.devices.len(), DEFAULT_DEVICES.len());
}

#[test]
fn a_device_with_a_number_that_is_none_is_refused() {
    let mut spec = spec();
    spec["linux"]["devices"] = json!([{"path": "/dev/x", "type": "c", "major": -1, "minor": 3}]);
    assert_eq!(refusal(&spec), "device: \"/dev/x\" is not valid");
}

#[test]
fn sysctl_names_are_paths_below_proc_sys() {
    let mut spec = spec();
    spec["linux"]["namespaces"] = json!([{"type": "mount"}, {"type": "network"}]);
    spec["linux"]["sysctl"] = json!({"net.ipv4.ip_forward": "1"});
    let (container, _) = read(&spec).unwrap();
    assert_eq!(
        container.sysctl,
        [(PathBuf::from("net/ipv4/ip_forward"), "1".to_owned())]
    );
    spec["linux"]["sysctl"] = json!({"net/ipv4/conf/eth0.1/rp_filter": "1"});
    assert_eq!(
        read(&spec).unwrap().0.sysctl[0].0,
        Path::new("net/ipv4/conf/eth0.1/rp_filter")
    );
    for name in ["../../etc/passwd", "net/../../x", "/etc/passwd", "", "."] {
        spec["linux"]["sysctl"] = json!({name: "1"});
        assert!(read(&spec).is_err(), "{name:?}");
    }
}

#[test]
fn a_relative_cwd_and_an_empty_command_are_refused() {
    let mut given = spec();
    given["process"]["cwd"] = json!("work");
    assert_eq!(refusal(&given), "cwd \"work\" is not an absolute path");
    let mut given = spec();
    given["process"]["args"] = json!([]);
    assert_eq!(
        refusal(&given),
        "the specification has no program to run (process.args)"
    );
    given["process"]["args"] = json!(["a\0b"]);
    assert!(refusal(&given).starts_with("argument or variable"));
}

#[test]
fn a_name_with_dots_first_has_slashes_for_dots_of_an_interface() {
    let mut spec = spec();
    spec["linux"]["namespaces"] = json!([{"type": "mount"}, {"type": "network"}]);
    spec["linux"]["sysctl"] = json!({"net.ipv4.conf.eth0/1.rp_filter": "1"});
    assert_eq!(
        read(&spec).unwrap().0.sysctl[0].0,
        Path::new("net/ipv4/conf/eth0.1/rp_filter")
    );
}

#[test]
fn a_sysctl_needs_the_namespace_that_it_belongs_to() {
    for (name, namespace) in [
        ("net.core.somaxconn", "network"),
        ("kernel.shmmax", "ipc"),
        ("fs.mqueue.msg_max", "ipc"),
        ("kernel.domainname", "uts"),
    ] {
        let mut spec = spec();
        spec["linux"]["sysctl"] = json!({name: "1"});
        let why = refusal(&spec);
        assert_eq!(
            why,
            format!("linux.sysctl {name}: the container has no {namespace} namespace")
        );
        spec["linux"]["namespaces"] = json!([{"type": "mount"}, {"type": namespace}]);
        assert!(read(&spec).is_ok(), "{name}");
    }
}

#[test]
fn a_sysctl_of_the_machine_is_refused() {
    for name in [
        "vm.swappiness",
        "kernel.panic",
        "fs.file-max",
        "kernel.hostname",
    ] {
        let mut spec = spec();
        spec["linux"]["namespaces"] = json!([{"type": "mount"}, {"type": "uts"}]);
        spec["linux"]["sysctl"] = json!({name: "1"});
        assert!(refusal(&spec).starts_with(&format!("linux.sysctl {name}: ")));
    }
}

#[test]
fn what_a_guest_cannot_do_is_refused_by_its_name() {
    for (key, value) in [
        ("intelRdt", json!({"closID": "x"})),
        ("memoryPolicy", json!({"mode": "MPOL_BIND", "nodes": "0"})),
        ("netDevices", json!({"eth0": {}})),
    ] {
        let mut given = spec();
        given["linux"][key] = value;
        assert_eq!(
            refusal(&given),
            format!("linux.{key} is not supported in a guest")
        );
    }
    let mut given = spec();
    given["linux"]["personality"] = json!({"domain": "LINUX32", "flags": ["X"]});
    assert!(refusal(&given).starts_with("linux.personality.flags \"X\""));
    let mut given = spec();
    given.as_object_mut().unwrap().remove("linux");
    assert!(refusal(&given).starts_with("a container without a mount namespace"));
}

#[test]
fn a_filter_that_asks_somebody_is_refused() {
    let mut given = spec();
    for seccomp in [
        json!({"defaultAction": "SCMP_ACT_NOTIFY"}),
        json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["mkdir"], "action": "SCMP_ACT_NOTIFY"}]}),
    ] {
        given["linux"]["seccomp"] = seccomp;
        assert_eq!(
            refusal(&given),
            "linux.seccomp with SCMP_ACT_NOTIFY is not supported in a guest"
        );
    }
}

#[test]
fn a_filters_rule_that_makes_no_sense_is_refused() {
    let mut given = spec();
    for (rule, why) in [
        (
            json!({"names": [], "action": "SCMP_ACT_ERRNO"}),
            "name in a rule",
        ),
        (
            json!({"names": ["mkdir"], "action": "SCMP_ACT_KILL", "errnoRet": 1}),
            "errnoRet",
        ),
    ] {
        given["linux"]["seccomp"] = json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule]});
        assert!(refusal(&given).contains(why));
    }
}

#[test]
fn a_resource_limit_is_given_once() {
    let mut given = spec();
    let limit = json!({"type": "RLIMIT_CORE", "soft": 0, "hard": 0});
    given["process"]["rlimits"] = json!([limit, limit]);
    assert!(refusal(&given).contains("twice"));
}

#[test]
fn a_user_namespace_is_joined_last() {
    let mut spec = spec();
    spec["linux"]["namespaces"] = json!([
        {"type": "user", "path": "/proc/7/ns/user"},
        {"type": "mount"},
        {"type": "ipc", "path": "/proc/7/ns/ipc"},
    ]);
    assert!(refusal(&spec).contains("uidMappings"));
    let map = json!([{"containerID": 0, "hostID": 1000, "size": 10}]);
    spec["linux"]["uidMappings"] = map.clone();
    spec["linux"]["gidMappings"] = map;
    let (container, _) = read(&spec).unwrap();
    assert_eq!(container.join[1].0, Namespaces::USER);
    assert!(container.namespaces().contains(Namespaces::USER));
}

#[test]
fn a_namespace_is_given_once_and_by_an_absolute_path() {
    let mut spec = spec();
    spec["linux"]["namespaces"] = json!([{"type": "mount"}, {"type": "ipc"}, {"type": "ipc"}]);
    assert!(refusal(&spec).ends_with("given twice"));
    spec["linux"]["namespaces"] = json!([{"type": "mount"}, {"type": "ipc", "path": "x"}]);
    assert_eq!(refusal(&spec), "linux.namespaces.path: \"x\" is not valid");
}

#[test]
fn time_offsets_need_a_new_time_namespace_and_a_clock_that_can_be_set() {
    let mut spec = spec();
    spec["linux"]["timeOffsets"] = json!({"boottime": {"secs": 5}});
    assert!(refusal(&spec).starts_with("linux.timeOffsets: there is no new time namespace"));
    spec["linux"]["namespaces"] = json!([{"type": "mount"}, {"type": "time"}]);
    let (container, _) = read(&spec).unwrap();
    assert_eq!(container.time_offsets[0].seconds, 5);
    spec["linux"]["timeOffsets"] = json!({"realtime": {"secs": 5}});
    assert_eq!(
        refusal(&spec),
        "linux.timeOffsets: \"realtime\" is not valid"
    );
}

#[test]
fn a_schedule_is_in_the_kernels_numbers() {
    let mut given = spec();
    given["process"]["scheduler"] =
        json!({"policy": "SCHED_RR", "priority": 7, "flags": ["SCHED_RESET_ON_FORK"]});
    given["process"]["ioPriority"] = json!({"class": "IOPRIO_CLASS_BE", "priority": 3});
    given["process"]["execCPUAffinity"] = json!({"initial": "0", "final": "0-2,5"});
    given["linux"]["personality"] = json!({"domain": "LINUX32"});
    let (_, init) = read(&given).unwrap();
    let schedule = &init.schedule;
    let scheduler = schedule.scheduler.unwrap();
    assert_eq!(
        (scheduler.policy, scheduler.priority, scheduler.flags),
        (2, 7, 1)
    );
    assert_eq!(schedule.io_priority, Some(2 << 13 | 3));
    assert_eq!(schedule.cpus, [0, 1, 2, 5]);
    assert_eq!(schedule.personality, Some(8));
    let process =
        json!({"args": ["ls"], "cwd": "/", "execCPUAffinity": {"final": "1"}, "user": {}});
    let exec = exec(process.to_string().as_bytes(), &init, NO_SIZE).unwrap();
    assert_eq!(exec.schedule.scheduler, schedule.scheduler);
    assert_eq!(
        (exec.schedule.initial_cpus, exec.schedule.cpus),
        (vec![], vec![1])
    );
}

#[test]
fn a_schedule_that_contradicts_itself_is_refused() {
    for (scheduler, what) in [
        (json!({"policy": "SCHED_OTHER", "priority": 1}), "priority"),
        (json!({"policy": "SCHED_FIFO", "nice": 1}), "nice"),
        (json!({"policy": "SCHED_OTHER", "nice": 20}), "nice"),
        (json!({"policy": "SCHED_RR", "runtime": 1}), "runtime"),
        (json!({"policy": "SCHED_ISO"}), "policy"),
    ] {
        let mut given = spec();
        given["process"]["scheduler"] = scheduler;
        assert!(refusal(&given).starts_with(&format!("process.scheduler.{what}")));
    }
    let mut given = spec();
    given["process"]["ioPriority"] = json!({"class": "IOPRIO_CLASS_RT", "priority": 8});
    assert!(refusal(&given).starts_with("process.ioPriority"));
    for cpus in ["3-1", "1024", "0-4294967295"] {
        let mut given = spec();
        given["process"]["execCPUAffinity"] = json!({"final": cpus});
        assert!(refusal(&given).starts_with("process.execCPUAffinity"));
    }
}

#[test]
fn a_start_hook_is_told_the_containers_state() {
    let mut given = spec();
    given["annotations"] = json!({"husk.bundle": "/b"});
    given["hooks"] = json!({"startContainer": [{"path": "/hook", "args": ["hook", "x"]}]});
    let hooks = read(&given).unwrap().0.start_hooks.unwrap();
    let state: Value = serde_json::from_str(&hooks.state(4)).unwrap();
    assert_eq!(
        state,
        json!({"ociVersion": "1.2.0", "id": "c", "status": "created", "pid": 4, "bundle": "/b", "annotations": {"husk.bundle": "/b"}})
    );
    for hook in [
        json!({"path": "hook"}),
        json!({"path": "/h", "timeout": 0}),
        json!({"path": "/h", "env": ["A\0B"]}),
    ] {
        given["hooks"] = json!({"startContainer": [hook]});
        assert!(refusal(&given).starts_with("hooks.startContainer"));
    }
}

#[test]
fn an_id_mapped_mount_is_the_hosts_work() {
    let map = json!([{"containerID": 0, "hostID": 1000, "size": 10}]);
    let mut given = spec();
    given["mounts"] =
        json!([{"destination": "/m", "type": "bind", "source": "/s", "options": ["bind"]}]);
    assert!(read(&given).is_ok());
    given["mounts"][0]["uidMappings"] = map;
    assert_eq!(
        refusal(&given),
        "id-mapped mount of /m: owners are mapped where the files are, on the host"
    );
}

#[test]
fn capabilities_are_the_kernels_bits() {
    let mut given = spec();
    given["process"]["capabilities"] = json!({
        "bounding": ["CAP_CHOWN", "CAP_CHECKPOINT_RESTORE"],
        "permitted": ["CAP_CHOWN", "CAP_KILL"],
        "inheritable": ["CAP_KILL"],
        "ambient": ["CAP_CHOWN", "CAP_KILL"],
    });
    let capabilities = read(&given).unwrap().1.capabilities;
    assert_eq!(capabilities.bounding, 1 | 1 << 40);
    assert_eq!(
        capabilities.ambient,
        1 << 5,
        "only what is permitted and inheritable"
    );
    assert_eq!(capabilities.effective, 0);
}

#[test]
fn an_exec_takes_over_what_belongs_to_the_container() {
    let mut given = spec();
    given["process"]["capabilities"] = json!({"bounding": ["CAP_KILL"]});
    given["process"]["noNewPrivileges"] = json!(true);
    given["linux"]["seccomp"] = json!({"defaultAction": "SCMP_ACT_ALLOW"});
    let (_, init) = read(&given).unwrap();
    let process = json!({"args": ["ls"], "cwd": "/tmp", "user": {"uid": 5, "gid": 6}});
    let process = exec(process.to_string().as_bytes(), &init, NO_SIZE).unwrap();
    assert_eq!(process.capabilities, init.capabilities);
    assert!(process.no_new_privileges && process.seccomp.is_some());
    assert_eq!((process.uid, process.gid), (5, 6));
}

#[test]
fn the_size_of_the_request_comes_before_that_of_the_specification() {
    let mut given = spec();
    given["process"]["consoleSize"] = json!({"height": 20, "width": 100_000});
    assert_eq!(
        read(&given).unwrap().1.size,
        WindowSize {
            width: u16::MAX,
            height: 20
        }
    );
    let size = WindowSize {
        width: 1,
        height: 2,
    };
    let plan = plan(&given, size).unwrap();
    assert_eq!(plan.process.size, size);
}

#[test]
fn options_become_attributes_and_the_last_one_counts() {
    let made = mount(&["rbind", "ro", "nosuid", "rw", "noatime"], "none").unwrap();
    assert_eq!(
        made.kind,
        MountKind::Bind {
            source: PathBuf::from("/s"),
            recursive: true
        }
    );
    assert_eq!(
        made.attributes,
        Attributes {
            set: 0x2 | 0x10,
            clear: 0x1 | 0x70
        }
    );
    let made = mount(&["bind", "rw", "ro", "noatime", "relatime"], "bind").unwrap();
    assert_eq!(
        made.attributes,
        Attributes {
            set: 0x1,
            clear: 0x70
        }
    );
}

#[test]
fn recursive_options_are_for_all_below() {
    let made = mount(&["rbind", "rro", "rslave", "rnoexec"], "bind").unwrap();
    assert!(made.attributes.is_empty());
    assert_eq!(
        made.recursive,
        Attributes {
            set: 0x1 | 0x8,
            clear: 0
        }
    );
    assert_eq!(
        made.propagation,
        Some(Propagation {
            kind: PropagationKind::Slave,
            recursive: true
        })
    );
}

#[test]
fn other_options_are_the_file_systems_own() {
    let made = mount(&["size=64k", "nosuid", "sync", "defaults"], "tmpfs").unwrap();
    let options = vec![
        ("size".to_owned(), Some("64k".to_owned())),
        ("sync".to_owned(), None),
    ];
    assert_eq!(
        made.kind,
        MountKind::New {
            fstype: "tmpfs".to_owned(),
            source: "/s".to_owned(),
            options
        }
    );
    assert!(mount(&["bind", "size=64k"], "bind").is_err());
    let made = mount(&["remount", "ro"], "tmpfs").unwrap();
    assert_eq!((made.kind, made.attributes.set), (MountKind::Remount, 1));
}

#[test]
fn both_cgroup_versions_are_the_containers_cgroup() {
    assert_eq!(mount(&["ro"], "cgroup").unwrap().kind, MountKind::Cgroup);
    assert_eq!(mount(&["ro"], "cgroup2").unwrap().kind, MountKind::Cgroup);
}

#[test]
fn a_plan_survives_its_way_to_the_child() {
    let mut spec = spec();
    spec["linux"]["resources"] = json!({"pids": {"limit": 5}, "devices": [{"allow": false}]});
    spec["hooks"] = json!({"startContainer": [{"path": "/hook", "timeout": 3}]});
    spec["process"]["scheduler"] = json!({"policy": "SCHED_FIFO", "priority": 4});
    let plan = plan(&spec, NO_SIZE).unwrap();
    let json = serde_json::to_vec(&plan).unwrap();
    let read: Plan = serde_json::from_slice(&json).unwrap();
    assert_eq!(format!("{plan:?}"), format!("{read:?}"));
}

#[test]
fn open_files_are_limited_as_on_a_usual_host_unless_the_specification_says_otherwise() {
    let mut spec = spec();
    let usual = Rlimit {
        resource: 7,
        soft: 1024,
        hard: 524_288,
    };
    assert_eq!(read(&spec).unwrap().1.rlimits, [usual]);
    spec["process"]["rlimits"] = json!([{"type": "RLIMIT_NOFILE", "soft": 5, "hard": 6}]);
    let given = Rlimit {
        soft: 5,
        hard: 6,
        ..usual
    };
    assert_eq!(read(&spec).unwrap().1.rlimits, [given]);
}

#[test]
fn a_tmpfs_with_a_name_is_shared() {
    let given = json!({
        "destination": "/dev/shm", "type": "tmpfs", "source": "shm",
        "options": ["nosuid", "mode=1777", "husk.shared=35-1", "size=4096"],
    });
    let read = mount::read(&serde_json::from_value(given).unwrap()).unwrap();
    let shared = MountKind::Shared {
        name: "35-1".to_owned(),
        options: "mode=1777,size=4096".to_owned(),
    };
    assert_eq!(read.kind, shared);
}
