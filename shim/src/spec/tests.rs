//! The split, case by case, on small configurations.

use std::os::unix::ffi::OsStrExt as _;

use serde_json::{Value, json};

use super::*;

/// A configuration that runs.
fn config() -> Value {
    json!({
        "ociVersion": "1.2.0",
        "root": {"path": "rootfs"},
        "process": {
            "user": {"uid": 0, "gid": 0},
            "args": ["true"],
            "cwd": "/"
        },
        "hostname": "web",
        "mounts": [],
        "linux": {
            "namespaces": [{"type": "pid"}, {"type": "network"}, {"type": "mount"}, {"type": "uts"}]
        }
    })
}

fn split_of(config: &Value) -> Result<Split, SpecError> {
    split(
        config.to_string().as_bytes(),
        "c1",
        Path::new("/b"),
        &memory_in_run,
    )
}

/// The host has a tmpfs at /run/shm, and one without a limit at /b/shm.
fn memory_in_run(source: &Path) -> Option<HostMemory> {
    let bytes = match source.to_str()? {
        "/run/shm" => 200 << 20,
        "/b/shm" => 0,
        _ => return None,
    };
    let name = "35-1".to_owned();
    Some(HostMemory { name, bytes })
}

fn guest_of(config: &Value) -> Value {
    serde_json::from_slice(&split_of(config).unwrap().guest_json(&[]).unwrap()).unwrap()
}

fn with(path: &str, value: Value) -> Value {
    let mut config = config();
    let (parent, key) = path.rsplit_once('/').unwrap();
    let parent = if parent.is_empty() {
        &mut config
    } else {
        config.pointer_mut(parent).unwrap()
    };
    parent[key] = value;
    config
}

/// The error's text for a configuration changed in one place.
fn refusal(path: &str, value: Value) -> String {
    split_of(&with(path, value)).unwrap_err().to_string()
}

#[test]
fn rootfs_becomes_the_shares() {
    let config = config();
    assert_eq!(
        guest_of(&config)["root"]["path"],
        "/run/husk/share/c1/rootfs"
    );
    let host = split_of(&config).unwrap().host;
    assert_eq!(host.rootfs, Path::new("rootfs"));
    assert_eq!(host.hostname.as_deref(), Some("web"));
}

#[test]
fn binds_become_the_shares_in_order() {
    let config = with(
        "/mounts",
        json!([
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/data", "type": "bind", "source": "/srv/data", "options": ["rbind", "ro"]},
            {"destination": "/etc/hosts", "type": "none", "source": "hosts", "options": ["bind", "rslave"]},
            {"destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": ["size=1m"]}
        ]),
    );
    let guest = guest_of(&config);
    assert_eq!(guest["mounts"][0], config["mounts"][0]);
    assert_eq!(guest["mounts"][1]["source"], "/run/husk/share/c1/mounts/0");
    assert_eq!(guest["mounts"][1]["options"], json!(["rbind", "ro"]));
    assert_eq!(guest["mounts"][2]["source"], "/run/husk/share/c1/mounts/1");
    assert_eq!(guest["mounts"][3], config["mounts"][3]);
    let bind = |source: &str, destination: &str, read_only, recursive, follows_host| Bind {
        source: source.into(),
        destination: destination.into(),
        read_only,
        recursive,
        follows_host,
        id_map: None,
    };
    assert_eq!(
        split_of(&config).unwrap().host.binds,
        [
            bind("/srv/data", "/data", ReadOnly::Itself, true, false),
            bind("hosts", "/etc/hosts", ReadOnly::Nothing, false, true)
        ]
    );
}

#[test]
fn the_last_option_says_how_much_of_a_bind_is_read_only() {
    let of = |options: &[&str]| {
        let mount =
            json!([{"destination": "/m", "type": "bind", "source": "/s", "options": options}]);
        split_of(&with("/mounts", mount)).unwrap().host.binds[0].read_only
    };
    for (options, expected) in [
        (&["rbind"][..], ReadOnly::Nothing),
        (&["rbind", "ro"], ReadOnly::Itself),
        (&["rbind", "ro", "rw"], ReadOnly::Nothing),
        (&["rbind", "rw", "rro"], ReadOnly::WithAllBelow),
        (&["rbind", "rro", "rw"], ReadOnly::WithAllBelow),
        (&["rbind", "ro", "rrw"], ReadOnly::Nothing),
    ] {
        assert_eq!(of(options), expected, "{options:?}");
    }
}

#[test]
fn what_is_mounted_below_a_bind_is_told_to_the_agent() {
    let mounts = json!([
        {"destination": "/t", "type": "tmpfs", "source": "t"},
        {"destination": "/a", "type": "bind", "source": "/a", "options": ["rbind", "ro"]},
        {"destination": "/b", "type": "bind", "source": "/b", "options": ["rbind"]},
    ]);
    let mut split = split_of(&with("/mounts", mounts)).unwrap();
    let name = std::ffi::OsStr::from_bytes(b"\xff").into();
    let below = [Vec::new(), vec!["x".into(), name, "x/y z".into()]];
    split.add_mounts_below("c1", &below);
    let guest: Value = serde_json::from_slice(&split.guest_json(&[]).unwrap()).unwrap();
    assert_eq!(guest["mounts"][1]["options"], json!(["rbind", "ro"]));
    let told = json!(["rbind", "husk.below=x", "husk.below=x/y z"]);
    assert_eq!(guest["mounts"][2]["options"], told);
}

#[test]
fn an_id_mapped_mount_has_its_own_maps_or_the_containers() {
    let map = json!([{"containerID": 0, "hostID": 1000, "size": 10}]);
    let mount = |options: &[&str], kind: &str| json!([{"destination": "/m", "type": kind, "source": "/s", "options": options}]);
    let mut given = with("/mounts", mount(&["rbind", "ridmap"], "bind"));
    let refusal = |given: &Value| split_of(given).unwrap_err().to_string();
    let incomplete = "uidMappings or gidMappings of an id-mapped mount is missing or empty";
    assert_eq!(refusal(&given), incomplete);
    let namespaces = given["linux"]["namespaces"].as_array_mut().unwrap();
    namespaces.push(json!({"type": "user"}));
    given["linux"]["uidMappings"] = map.clone();
    given["linux"]["gidMappings"] = map.clone();
    let taken = split_of(&given).unwrap().host.binds[0].id_map.clone();
    let taken = taken.unwrap();
    assert_eq!((taken.uids[0].host_id(), taken.recursive), (1000, true));
    assert_eq!(guest_of(&given)["mounts"][0]["options"], json!(["rbind"]));
    given["mounts"] = mount(&["bind"], "bind");
    assert_eq!(split_of(&given).unwrap().host.binds[0].id_map, None);
    given["mounts"][0]["uidMappings"] = map.clone();
    assert_eq!(refusal(&given), incomplete);
    given["mounts"][0]["gidMappings"] = map;
    assert!(split_of(&given).unwrap().host.binds[0].id_map.is_some());
    assert_eq!(guest_of(&given)["mounts"][0]["uidMappings"], json!(null));
    given["mounts"] = mount(&["idmap"], "tmpfs");
    assert!(refusal(&given).starts_with("an id-mapped mount of /m cannot be used"));
}

#[test]
fn a_tmpfs_at_dev_shm_becomes_one_of_the_guests() {
    let shm = |source: &str, options: Value| {
        let mount =
            json!({"destination": "dev/shm", "type": "bind", "source": source, "options": options});
        with("/mounts", json!([mount]))
    };
    let config = shm("/run/shm", json!(["rbind", "rw"]));
    let guest = guest_of(&config);
    let expected = json!({"destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options":
        ["nosuid", "noexec", "nodev", "mode=1777", "husk.shared=35-1", "size=209715200"]});
    assert_eq!(guest["mounts"][0], expected);
    assert!(split_of(&config).unwrap().host.binds.is_empty());
    let guest = guest_of(&shm("shm", json!(["bind", "ro"])));
    let expected = json!([
        "nosuid",
        "noexec",
        "nodev",
        "mode=1777",
        "ro",
        "husk.shared=35-1"
    ]);
    assert_eq!(guest["mounts"][0]["options"], expected);
    let directory = shm("/data", json!(["bind"]));
    assert_eq!(guest_of(&directory)["mounts"][0]["type"], "bind");
    assert_eq!(split_of(&directory).unwrap().host.binds.len(), 1);
}

#[test]
fn labels_of_the_hosts_security_modules_are_dropped() {
    let guest = guest_of(&with("/process/apparmorProfile", json!("docker-default")));
    assert_eq!(guest["process"].get("apparmorProfile"), None);
}

#[test]
fn namespaces_of_the_host_are_refused() {
    let without = |typ: &str| {
        let all = json!([{"type": "pid"}, {"type": "network"}, {"type": "mount"}]);
        let kept: Vec<Value> = all
            .as_array()
            .unwrap()
            .iter()
            .filter(|n| n["type"] != typ)
            .cloned()
            .collect();
        refusal("/linux/namespaces", kept.into())
    };
    assert!(without("network").starts_with("the host's network namespace cannot be used"));
    assert!(without("pid").starts_with("the host's pid namespace cannot be used"));
    assert!(without("mount").starts_with("the host's mount namespace cannot be used"));
    let twice = json!([{"type": "pid"}, {"type": "network"}, {"type": "mount"}, {"type": "pid"}]);
    assert!(refusal("/linux/namespaces", twice).contains("second namespace of type pid"));
    let relative = json!([{"type": "pid"}, {"type": "network", "path": "net"}, {"type": "mount"}]);
    assert!(refusal("/linux/namespaces", relative).contains("not an absolute path"));
    let network = json!([
        {"type": "pid"}, {"type": "network", "path": "/run/netns/a"}, {"type": "mount"}, {"type": "uts"}
    ]);
    let config = with("/linux/namespaces", network);
    assert_eq!(
        guest_of(&config)["linux"]["namespaces"][1],
        json!({"type": "network"})
    );
    let host = split_of(&config).unwrap().host;
    assert_eq!(host.network.unwrap(), Path::new("/run/netns/a"));
}

#[test]
fn namespaces_that_are_the_vms_anyway_may_be_missing() {
    assert!(split_of(&config()).is_ok());
}

#[test]
fn devices_of_the_host_are_refused_by_name() {
    let device = |path: &str, typ: &str, major: i64, minor: i64| json!([{"path": path, "type": typ, "major": major, "minor": minor}]);
    let error = refusal("/linux/devices", device("/dev/sda", "b", 8, 0));
    assert!(
        error.starts_with("the device /dev/sda cannot be used"),
        "{error}"
    );
    for good in [
        device("/dev/null", "c", 1, 3),
        device("/dev/fuse", "c", 10, 229),
    ] {
        assert!(split_of(&with("/linux/devices", good)).is_ok());
    }
}

#[test]
fn kernel_files_of_the_host_are_refused() {
    for source in ["/proc/kmsg", "/sys/fs/cgroup", "/dev/kvm"] {
        let mounts =
            json!([{"destination": "/x", "type": "bind", "source": source, "options": ["bind"]}]);
        assert!(refusal("/mounts", mounts).contains(source));
    }
}

#[test]
fn seccomp_notify_is_refused() {
    let notify = json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["bpf"], "action": "SCMP_ACT_NOTIFY"}]});
    assert!(refusal("/linux/seccomp", notify).contains("notify"));
    let plain = json!({"defaultAction": "SCMP_ACT_ERRNO"});
    assert!(split_of(&with("/linux/seccomp", plain)).is_ok());
}

#[test]
fn hooks_of_the_host_are_the_hosts_and_of_the_container_the_guests() {
    let hook = json!([{"path": "/bin/true"}]);
    let config = with(
        "/hooks",
        json!({
            "prestart": hook, "createRuntime": hook, "createContainer": hook,
            "startContainer": hook, "poststop": hook
        }),
    );
    assert_eq!(guest_of(&config)["hooks"], json!({"startContainer": hook}));
    let hooks = split_of(&config).unwrap().host.hooks;
    assert_eq!(
        (
            hooks.create.len(),
            hooks.poststart.len(),
            hooks.poststop.len()
        ),
        (3, 0, 1)
    );
    let relative = json!({"poststop": [{"path": "true"}]});
    assert_eq!(
        refusal("/hooks", relative),
        "the hook true is not an absolute path"
    );
}

#[test]
fn what_must_be_there_is_named() {
    assert_eq!(
        refusal("/process/args", json!([])),
        "process.args is missing or empty"
    );
    assert_eq!(
        refusal("/root/path", json!("")),
        "root.path is missing or empty"
    );
    assert_eq!(
        refusal("/process/cwd", json!("tmp")),
        "process.cwd tmp is not an absolute path"
    );
    assert_eq!(
        refusal("/ociVersion", json!("2.0.0")),
        "ociVersion \"2.0.0\" is not supported: 1.x is"
    );
    let mut config = config();
    config.as_object_mut().unwrap().remove("linux");
    assert_eq!(
        split_of(&config).unwrap_err().to_string(),
        "linux is missing or empty"
    );
}

#[test]
fn a_process_without_a_user_is_roots() {
    let mut config = config();
    config["process"].as_object_mut().unwrap().remove("user");
    let user = guest_of(&config)["process"]["user"].clone();
    assert_eq!(user, json!({"uid": 0, "gid": 0}));
    let process = process_of(config.to_string().as_bytes()).unwrap();
    assert_eq!((process.user().uid(), process.user().gid()), (0, 0));
}

#[test]
fn an_exec_is_checked_like_a_process() {
    let process =
        json!({"user": {"uid": 0, "gid": 0}, "args": ["sh"], "cwd": "/", "terminal": true});
    let (_, terminal) = exec_process(process.to_string().as_bytes()).unwrap();
    assert!(terminal);
    let process = json!({"args": ["sh"], "cwd": "/"});
    let (kept, _) = exec_process(process.to_string().as_bytes()).unwrap();
    let kept: Value = serde_json::from_slice(&kept).unwrap();
    assert_eq!(kept["user"], json!({"uid": 0, "gid": 0}));
    let process = json!({"user": {"uid": 0, "gid": 0}, "args": [], "cwd": "/"});
    assert!(exec_process(process.to_string().as_bytes()).is_err());
}

#[test]
fn numbers_of_the_hosts_cpus_stay_on_the_host() {
    let cpu = json!({"cpus": "3-5", "mems": "1", "shares": 512});
    let config = with("/linux/resources", json!({"cpu": cpu}));
    let cpu = guest_of(&config)["linux"]["resources"]["cpu"].clone();
    assert_eq!(cpu, json!({"shares": 512}));
    let (_, kept) = resources(br#"{"cpu": {"cpus": "3"}}"#).unwrap();
    let kept: Value = serde_json::from_slice(&kept).unwrap();
    assert_eq!(kept, json!({"cpu": {}}));
}

#[test]
fn start_hooks_learn_where_the_bundle_is() {
    let hooks = json!({"startContainer": [{"path": "/h"}]});
    let guest = guest_of(&with("/hooks", hooks));
    assert_eq!(guest["annotations"][BUNDLE_ANNOTATION], "/b");
    assert!(guest_of(&config()).get("annotations").is_none());
}

#[test]
fn a_member_of_a_sandbox_names_the_namespaces_it_shares() {
    let namespaces = json!([
        {"type": "pid"}, {"type": "mount"}, {"type": "uts"},
        {"type": "network", "path": "/proc/7/ns/net"}, {"type": "ipc", "path": "/proc/7/ns/ipc"},
    ]);
    let mut config = with("/linux/namespaces", namespaces);
    let alone = split_of(&config).unwrap().host;
    let refused = alone.check_alone().unwrap_err().to_string();
    assert!(refused.contains("/proc/7/ns/ipc"), "{refused}");
    config["annotations"] = json!({
        "io.kubernetes.cri.container-type": "container", "io.kubernetes.cri.sandbox-id": "pod",
    });
    let split = split_of(&config).unwrap();
    assert_eq!(split.host.sandbox.as_deref(), Some("pod"));
    assert_eq!(
        split.host.network.as_deref(),
        Some(Path::new("/proc/7/ns/net"))
    );
    let kinds: Vec<_> = split.host.shared.iter().map(|shared| shared.kind).collect();
    assert_eq!(
        kinds,
        [LinuxNamespaceType::Network, LinuxNamespaceType::Ipc]
    );
    let joined = [(LinuxNamespaceType::Ipc, PathBuf::from("/proc/3/ns/ipc"))];
    let guest: Value = serde_json::from_slice(&split.guest_json(&joined).unwrap()).unwrap();
    let path = |index: usize| guest["linux"]["namespaces"][index]["path"].clone();
    assert_eq!((path(3), path(4)), (Value::Null, "/proc/3/ns/ipc".into()));
    config["linux"]["namespaces"][1]["path"] = "/proc/7/ns/mnt".into();
    assert!(
        split_of(&config)
            .unwrap_err()
            .to_string()
            .contains("mounts of its own")
    );
}
