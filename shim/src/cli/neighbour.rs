//! Whose VM a container is to be in that names namespaces of another container by their paths alone,
//! as engines write `--pid container:ID`, `--ipc container:ID` and `--network container:ID`.
//!
//! ```text
//!   the paths ─► records below the root ─► a process that lives and stands for a container in it ─► its sandbox
//! ```
//!
//! A container below another root is another user's: it is not looked for. The sandbox's supervisor
//! looks at the paths again when it makes the container. Ways to fail: nobody is in a namespace, which
//! for a network is no failure, or the namespaces are those of containers in different VMs.

use std::collections::BTreeSet;

use anyhow::bail;
use oci_spec::runtime::LinuxNamespaceType;

use crate::config::Options;
use crate::network;
use crate::spec::HostPart;
use crate::state::{Record, StateDir, StateError};

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
            Err(error) => return Err(error),
        }
    }
    Ok(living)
}

/// By the start of the process as well: a later one with its pid stands for nobody.
fn stood_for(record: Record) -> Option<(i32, String)> {
    let pid = record.pid?;
    let mut processes = [Some(record.supervisor), record.vmm].into_iter().flatten();
    let process = processes.find(|process| process.pid == pid)?;
    process.open()?;
    Some((pid, record.sandbox.unwrap_or(record.id)))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use clap::Parser as _;

    use super::*;
    use crate::cli::CommandLine;
    use crate::spec::Shared;
    use crate::state::ProcessRef;

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

    /// A record of a container that `process` stands for.
    fn record(root: &Path, id: &str, process: ProcessRef, sandbox: Option<&str>) -> StateDir {
        let record = Record {
            pid: Some(process.pid),
            sandbox: sandbox.map(str::to_owned),
            ..Record::new(id, process)
        };
        StateDir::claim(root, id, Some(&record)).unwrap()
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
