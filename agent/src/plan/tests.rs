//! What a plan is for what a specification says.

use serde_json::{Value, json};

use super::*;

const NO_SIZE: WindowSize = WindowSize {
    width: 0,
    height: 0,
};

fn spec() -> Value {
    json!({
        "ociVersion": "1.2.0",
        "process": {"args": ["true"], "cwd": "/", "env": [], "user": {"uid": 0, "gid": 0}},
        "root": {"path": "/rootfs"},
        "linux": {"namespaces": [{"type": "mount"}, {"type": "pid"}]},
    })
}

fn read(spec: &Value) -> Result<(Container, Process), PlanError> {
    let plan = container(spec.to_string().as_bytes(), Path::new("/cgroup/c"), NO_SIZE)?;
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
fn what_a_guest_cannot_do_is_refused() {
    let mut given = spec();
    given["linux"]["personality"] = json!({"domain": "LINUX32"});
    assert_eq!(
        refusal(&given),
        "linux.personality is not supported in a guest"
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
    let plan = container(given.to_string().as_bytes(), Path::new("/c"), size).unwrap();
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
    assert!(mount(&["remount"], "tmpfs").is_err());
}

#[test]
fn both_cgroup_versions_are_the_containers_cgroup() {
    assert_eq!(mount(&["ro"], "cgroup").unwrap().kind, MountKind::Cgroup);
    assert_eq!(mount(&["ro"], "cgroup2").unwrap().kind, MountKind::Cgroup);
}

#[test]
fn a_plan_survives_its_way_to_the_child() {
    let plan = container(
        spec().to_string().as_bytes(),
        Path::new("/cgroup/c"),
        NO_SIZE,
    )
    .unwrap();
    let json = serde_json::to_vec(&plan).unwrap();
    let read: Plan = serde_json::from_slice(&json).unwrap();
    assert_eq!(format!("{plan:?}"), format!("{read:?}"));
}
