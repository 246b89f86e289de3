//! Whose VM a container is to be in that names namespaces of another container by their paths alone,
//! as engines write `--pid container:ID`, `--ipc container:ID` and `--network container:ID`.
//!
//! ```text
//!   the paths ─► records below the root ─► a process that lives and stands for a container in it,
//!                                          which is made and has not stopped ─► its sandbox
//! ```
//!
//! A container below another root is another user's: it is not looked for. A record that cannot be
//! read is passed over with a warning, or one would keep all containers from their networks. The
//! sandbox's supervisor looks at the paths again when it makes the container. Ways to fail: nobody is
//! in a namespace, which for a network is no failure, or the namespaces are those of containers in
//! different VMs.

use std::collections::BTreeSet;

use anyhow::bail;
use oci_spec::runtime::LinuxNamespaceType;

use crate::config::Options;
use crate::network;
use crate::spec::HostPart;
use crate::state::{Record, StateDir, StateError, Status};

/// The sandbox whose containers are in the namespaces that `host` names; none if the container is to
/// have a VM of its own.
pub(super) fn sandbox(options: &Options, host: &HostPart) -> anyhow::Result<Option<String>> {
    if host.shared.is_empty() {
        return Ok(None);
    }
    let living = living(options)?;
    let mut common: Option<BTreeSet<&str>> = None;
    for shared in &host.shared {
        let inside = living
            .iter()
            .filter(|(pid, _)| network::is_of_container(shared, *pid));
        let inside: BTreeSet<_> = inside.map(|(_, sandbox)| sandbox.as_str()).collect();
        if inside.is_empty() {
            match shared.kind {
                // One that an engine has made for this container.
                LinuxNamespaceType::Network => continue,
                _ => return Err(shared.nobodys().into()),
            }
        }
        common = Some(match common {
            None => inside,
            Some(common) => common.intersection(&inside).copied().collect(),
        });
    }
    match common {
        None => Ok(None),
        Some(common) => match common.first() {
            Some(sandbox) => Ok(Some((*sandbox).to_owned())),
            None => bail!("the namespaces that it names are those of containers in different VMs"),
        },
    }
}

/// The processes that stand for containers below the root, and whose sandbox each container is in.
fn living(options: &Options) -> Result<Vec<(i32, String)>, StateError> {
    let mut living = Vec::new();
    for id in StateDir::list(&options.root)? {
        match StateDir::open(&options.root, &id).and_then(|state| state.read()) {
            Ok(record) => living.extend(record.and_then(stood_for)),
            // Just removed.
            Err(StateError::NotFound(_)) => {}
            Err(error) => {
                let error = anyhow::Error::from(error);
                tracing::warn!("whether a namespace is that of {id} is not known: {error:#}");
            }
        }
    }
    Ok(living)
}

/// By the start of the process as well: a later one with its pid stands for nobody. Members that
/// others stand for have records of their own.
fn stood_for(record: Record) -> Option<(i32, String)> {
    let pid = record.pid?;
    let mut own = record.containers.iter().filter(|it| it.stand_in.is_none());
    let has_namespaces = |status| !matches!(status, Status::Creating | Status::Stopped);
    if !own.any(|container| has_namespaces(container.status)) {
        return None;
    }
    let mut processes = [Some(record.supervisor), record.vmm].into_iter().flatten();
    let process = processes.find(|process| process.pid == pid)?;
    process.open()?;
    Some((pid, record.sandbox.unwrap_or(record.id)))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::path::Path;

    use clap::Parser as _;

    use super::*;
    use crate::cli::CommandLine;
    use crate::spec::Shared;
    use crate::state::{ContainerRecord, ProcessRef};

    fn options(root: &Path) -> Options {
        let words = ["husk", "--root", root.to_str().unwrap(), "list"];
        CommandLine::try_parse_from(words).unwrap().options
    }

    fn host(shared: &[(LinuxNamespaceType, &str)]) -> HostPart {
        let shared = shared.iter().map(|(kind, path)| Shared {
            kind: *kind,
            path: path.into(),
        });
        HostPart {
            shared: shared.collect(),
            ..HostPart::default()
        }
    }

    fn find(root: &Path, shared: &[(LinuxNamespaceType, &str)]) -> Result<Option<String>, String> {
        let found = sandbox(&options(root), &host(shared));
        found.map_err(|error| format!("{error:#}"))
    }

    fn container(id: &str, status: Status, stand_in: Option<i32>) -> ContainerRecord {
        ContainerRecord {
            id: id.to_owned(),
            bundle: "/b".into(),
            rootfs: "/b/rootfs".into(),
            status,
            created_ns: 0,
            exit_status: None,
            annotations: BTreeMap::new(),
            poststop: Vec::new(),
            stand_in,
        }
    }

    /// What is written of a running container that `process` stands for.
    fn running(id: &str, process: ProcessRef, sandbox: Option<&str>) -> Record {
        Record {
            pid: Some(process.pid),
            sandbox: sandbox.map(str::to_owned),
            containers: vec![container(id, Status::Running, None)],
            ..Record::new(id, process)
        }
    }

    fn record(root: &Path, id: &str, process: ProcessRef, sandbox: Option<&str>) -> StateDir {
        StateDir::claim(root, id, Some(&running(id, process, sandbox))).unwrap()
    }

    #[test]
    fn a_path_leads_to_the_sandbox_of_whom_it_names_and_to_no_other_root() {
        let (root, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let mut child = std::process::Command::new("sleep")
            .arg("1000")
            .spawn()
            .unwrap();
        let this = ProcessRef::this().unwrap();
        let process = ProcessRef::of(i32::try_from(child.id()).unwrap()).unwrap();
        let _own = record(root.path(), "web", this, None);
        let _member = record(root.path(), "side", process, Some("pod"));
        // One whose record is not to be read stands in nobody's way.
        let damaged = StateDir::claim(root.path(), "damaged", None).unwrap();
        std::fs::write(damaged.path().join("state.json"), "{").unwrap();
        let ipc = |pid: i32| format!("/proc/{pid}/ns/ipc");
        let (kind, pid) = (LinuxNamespaceType::Ipc, LinuxNamespaceType::Pid);
        let network = LinuxNamespaceType::Network;
        let (of_this, of_member) = (ipc(this.pid), ipc(process.pid));
        let found = |path: &str| find(root.path(), &[(kind, path)]);
        assert_eq!(found(&of_this).unwrap().as_deref(), Some("web"));
        assert_eq!(found(&of_member).unwrap().as_deref(), Some("pod"));
        let nobody = "no running container below the same root is in it";
        assert!(found("/proc/1/ns/ipc").unwrap_err().contains(nobody));
        let elsewhere = find(other.path(), &[(kind, &of_this)]);
        assert!(elsewhere.unwrap_err().contains(nobody));
        // A network of the host's is somebody's only if it is not everybody's.
        let of_host = (network, "/proc/1/ns/net");
        assert_eq!(find(root.path(), &[of_host]).unwrap(), None);
        let both = [of_host, (kind, &of_this)];
        assert_eq!(find(root.path(), &both).unwrap().as_deref(), Some("web"));
        let apart = format!("/proc/{}/ns/pid", process.pid);
        let error = find(root.path(), &[(kind, &of_this), (pid, &apart)]).unwrap_err();
        assert!(error.contains("different VMs"), "{error}");
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(found(&of_member).unwrap_err().contains(nobody));
    }

    #[test]
    fn a_container_that_is_not_made_yet_or_has_stopped_is_no_neighbour() {
        let root = tempfile::tempdir().unwrap();
        let this = ProcessRef::this().unwrap();
        let path = format!("/proc/{}/ns/ipc", this.pid);
        let state = record(root.path(), "web", this, None);
        let found_as = |containers: &[ContainerRecord], sandbox: Option<&str>| {
            let record = Record {
                containers: containers.to_vec(),
                ..running("web", this, sandbox)
            };
            state.write(&record).unwrap();
            let found = find(root.path(), &[(LinuxNamespaceType::Ipc, &path)]);
            found.unwrap_or_default()
        };
        for sandbox in [None, Some("pod")] {
            let expected = sandbox.unwrap_or("web");
            for (status, is_neighbour) in [
                (Status::Creating, false),
                (Status::Created, true),
                (Status::Running, true),
                (Status::Paused, true),
                (Status::Stopped, false),
            ] {
                let found = found_as(&[container("web", status, None)], sandbox);
                let expected = is_neighbour.then_some(expected);
                assert_eq!(found.as_deref(), expected, "{status} in {sandbox:?}");
            }
            assert_eq!(found_as(&[], sandbox), None);
        }
        // Its member's namespaces have another process's pid; a container of containerd's pod has the same.
        let stopped = container("web", Status::Stopped, None);
        let member = container("side", Status::Running, Some(1));
        assert_eq!(found_as(&[stopped.clone(), member], None), None);
        let of_pod = container("side", Status::Running, None);
        let found = found_as(&[stopped, of_pod], None);
        assert_eq!(found.as_deref(), Some("web"));
    }

    #[test]
    fn a_later_process_with_the_same_pid_stands_for_nobody() {
        let root = tempfile::tempdir().unwrap();
        let this = ProcessRef::this().unwrap();
        let earlier = ProcessRef {
            start_time: this.start_time - 1,
            ..this
        };
        let _state = record(root.path(), "web", earlier, None);
        let path = format!("/proc/{}/ns/ipc", this.pid);
        let found = sandbox(
            &options(root.path()),
            &host(&[(LinuxNamespaceType::Ipc, &path)]),
        );
        assert!(found.is_err(), "{found:?}");
    }
}
