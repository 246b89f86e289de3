//! What the agent reads: configurations, of which the supervisor has passed on what a container's
//! owner wrote, and files of `/proc`, in which a process has a say.
//!
//! Promised: a configuration becomes a plan that the child can carry out as it is, or an error. A
//! plan reaches the child unchanged, its paths are where they may be, and no namespace, limit or
//! sysctl of the machine's own is in it.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Component, Path};

use serde::Serialize;
use serde::de::DeserializeOwned;

use plan::{
    Container, Entry, Limits, MountKind, Namespaces, Place, Plan, Present, Process, WindowSize,
};

// The agent is a program and no library; these of its modules need no other.
#[path = "../../../../agent/src/cgroup/text.rs"]
mod cgroup_text;
#[expect(
    dead_code,
    unused_imports,
    reason = "what the child does with a plan is not done here"
)]
#[path = "../../../../agent/src/plan/mod.rs"]
mod plan;
#[expect(dead_code, reason = "no process is looked at here")]
#[path = "../../../../agent/src/processes.rs"]
mod processes;

fn place() -> Place<'static> {
    Place {
        id: "id",
        cgroup: Path::new("/sys/fs/cgroup/husk/id"),
    }
}

/// A container that an exec comes into.
const CONFIG: &[u8] = br#"{"ociVersion": "1.2.0", "root": {"path": "/r"}, "process": {"cwd": "/",
    "args": ["init"], "user": {"uid": 0, "gid": 0}, "noNewPrivileges": true,
    "capabilities": {"bounding": ["CAP_KILL"], "permitted": ["CAP_KILL"]}},
    "linux": {"namespaces": [{"type": "mount"}]}}"#;

/// A container's configuration, an exec's process and new limits are all JSON: what is one of them
/// is seldom another.
pub(crate) fn config(bytes: &[u8]) {
    container(bytes);
    exec(bytes);
    update(bytes);
}

/// `/proc/PID/stat`, `status` and `cmdline`, of which a process writes its name and its arguments, and
/// `/proc/PID/cgroup`, in which a container has named the cgroups.
pub(crate) fn proc_files(bytes: &[u8]) {
    processes::read_files(bytes);
    cgroup_text::oom_kills(&String::from_utf8_lossy(bytes));
    let name: Vec<u8> = bytes
        .iter()
        .copied()
        .filter(|byte| *byte != b'\n')
        .collect();
    let table = [b"0::/containers/", &name[..], b"\n"].concat();
    let wanted = [b"containers/", &name[..]].concat();
    let found = cgroup_text::unified(&table);
    assert_eq!(found, Some(Path::new(OsStr::from_bytes(&wanted))));
}

/// A container's configuration: a plan that its child can carry out as it is, or an error.
fn container(config: &[u8]) {
    let Ok(plan) = plan::container(config, place(), WindowSize::default()) else {
        return;
    };
    assert_eq!(plan.cgroup, place().cgroup);
    let plan = same_in_child::<Plan>(&plan);
    check_process(&plan.process);
    match plan.entry {
        Entry::Create(container) => check_container(&container),
        Entry::Join(_) => panic!("a container that is none of its own"),
    }
}

/// An exec's process, in a container that gives up privileges.
fn exec(process: &[u8]) {
    let Ok(plan) = plan::container(CONFIG, place(), WindowSize::default()) else {
        panic!("the container is refused");
    };
    if let Ok(process) = plan::exec(process, &plan.process, WindowSize::default()) {
        check_process(&process);
        assert!(
            process.no_new_privileges,
            "an exec that may gain privileges"
        );
        same_in_child::<Process>(&process);
    }
}

/// New limits.
fn update(resources: &[u8]) {
    let present = Present {
        cpu_quota: Some("50000".to_owned()),
        memory_max: Some(1 << 30),
        memory_current: 1 << 20,
    };
    for present in [Present::default(), present] {
        if let Ok(limits) = plan::update(resources, &present) {
            check_limits(&limits);
            same_in_child::<Limits>(&limits);
        }
    }
}

/// What the child gets is what was planned.
fn same_in_child<T: Serialize + DeserializeOwned>(planned: &T) -> T {
    let Ok(json) = serde_json::to_vec(planned) else {
        panic!("a plan that cannot be sent to the child");
    };
    let Ok(read) = serde_json::from_slice::<T>(&json) else {
        panic!("a plan that the child cannot read");
    };
    let again = serde_json::to_value(&read).ok();
    assert_eq!(again, serde_json::to_value(planned).ok());
    read
}

fn check_process(process: &Process) {
    assert!(process.cwd.is_absolute());
    assert!(
        process
            .args
            .first()
            .is_some_and(|program| !program.is_empty())
    );
    let texts = process.args.iter().chain(&process.env);
    assert!(texts.into_iter().all(|text| !text.contains('\0')));
    assert!(process.umask <= 0o777);
    let sets = process.capabilities;
    assert_eq!(sets.ambient & !(sets.permitted & sets.inheritable), 0);
    let limits = &process.rlimits;
    for (index, limit) in limits.iter().enumerate() {
        let before = &limits[..index];
        assert!(limit.resource < 16 && before.iter().all(|other| other.resource != limit.resource));
    }
    assert!(process.schedule.cpus.iter().all(|cpu| *cpu < 1024));
}

fn check_container(container: &Container) {
    assert!(container.unshare.contains(Namespaces::MOUNT));
    let mut all = container.unshare;
    for (kind, path) in &container.join {
        assert!(
            path.is_absolute() && !all.contains(*kind),
            "a namespace given twice"
        );
        all = all.with(*kind);
    }
    assert_eq!(container.id_maps.is_some(), all.contains(Namespaces::USER));
    for path in container
        .masked_paths
        .iter()
        .chain(&container.readonly_paths)
    {
        assert!(path.is_absolute());
    }
    for device in &container.devices {
        assert!(device.path.is_absolute() && device.mode <= 0o7777);
    }
    for (path, _) in &container.sysctl {
        let plain = |part| matches!(part, Component::Normal(_));
        assert!(
            path.components().all(plain),
            "outside of /proc/sys: {}",
            path.display()
        );
        let network = path.starts_with("net");
        assert!(
            !network || all.contains(Namespaces::NETWORK),
            "the machine's: {}",
            path.display()
        );
    }
    for mount in &container.mounts {
        assert_eq!(
            mount.attributes.set & mount.attributes.clear & libc::MOUNT_ATTR_RDONLY,
            0
        );
        if let MountKind::New { fstype, .. } = &mount.kind {
            assert!(!fstype.is_empty());
        }
    }
    check_limits(&container.limits);
}

fn check_limits(limits: &Limits) {
    for limit in &limits.writes {
        let one = !limit.file.contains(['/', '\0']) && limit.file.contains('.');
        assert!(one, "no file of a cgroup: {:?}", limit.file);
    }
}
