//! Whose VM a container is to be in, and which namespaces of that VM (pure).
//!
//! A container is in a VM of its own unless its annotations say, as those of Kubernetes' and Podman's pods do, that it is a member of
//! another one's sandbox, or it names a namespace that another one is in. A member may share namespaces of the sandbox's other containers: each is
//! named as on a host, by its path, `/proc/PID/ns/KIND` with the pid that is reported for the container.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use oci_spec::runtime::LinuxNamespaceType;

use super::SpecError;
use super::refuse::refused;

/// Who says of a container what it is, and whose sandbox it belongs to: containerd's, then CRI-O's and Podman's annotations.
const ANNOTATIONS: [(&str, &str); 2] = [
    (
        "io.kubernetes.cri.container-type",
        "io.kubernetes.cri.sandbox-id",
    ),
    (
        "io.kubernetes.cri-o.ContainerType",
        "io.kubernetes.cri-o.SandboxID",
    ),
];

/// A container that is not the first of its sandbox.
const MEMBER: &str = "container";

/// A namespace that is there already, by its path on the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Shared {
    pub(crate) kind: LinuxNamespaceType,
    pub(crate) path: PathBuf,
}

impl Shared {
    /// The pid of a path of the form `/proc/PID/ns/KIND`.
    pub(crate) fn pid(&self) -> Option<i32> {
        let rest = self.path.strip_prefix("/proc").ok()?;
        let (pid, file) = rest.to_str()?.split_once('/')?;
        if Path::new(file) != Path::new("ns").join(file_name(self.kind)) {
            return None;
        }
        pid.parse().ok()
    }

    /// Where the guest has that of its process `pid`.
    pub(crate) fn in_guest(&self, pid: u32) -> PathBuf {
        PathBuf::from(format!("/proc/{pid}/ns/{}", file_name(self.kind)))
    }

    /// The error for one that no container of the sandbox is in.
    pub(crate) fn unknown(&self) -> SpecError {
        refused(
            format!("the {} namespace {}", self.kind, self.path.display()),
            "no running container of its sandbox is in it",
        )
    }

    /// The error for one that no container below the root is in.
    pub(crate) fn nobodys(&self) -> SpecError {
        refused(
            format!("the {} namespace {}", self.kind, self.path.display()),
            "a guest's process enters those of containers only, and no running container below the same root is in it",
        )
    }
}

/// The kernel's name of a kind.
fn file_name(kind: LinuxNamespaceType) -> &'static str {
    match kind {
        LinuxNamespaceType::Mount => "mnt",
        LinuxNamespaceType::Cgroup => "cgroup",
        LinuxNamespaceType::Uts => "uts",
        LinuxNamespaceType::Ipc => "ipc",
        LinuxNamespaceType::User => "user",
        LinuxNamespaceType::Pid => "pid",
        LinuxNamespaceType::Network => "net",
        LinuxNamespaceType::Time => "time",
    }
}

/// The id of the sandbox that the annotations make container `id` a member of.
pub(super) fn sandbox(
    annotations: &BTreeMap<String, String>,
    id: &str,
) -> Result<Option<String>, SpecError> {
    let mut said = Vec::new();
    for (kind, name) in ANNOTATIONS {
        match annotations.get(kind) {
            None => {}
            Some(kind) if kind != MEMBER => said.push(None),
            Some(_) => match annotations.get(name) {
                Some(sandbox) if !sandbox.is_empty() => {
                    said.push(Some(sandbox.clone()).filter(|sandbox| sandbox != id));
                }
                _ => {
                    return Err(SpecError::Missing(
                        "the annotation with the id of the sandbox that the container belongs to",
                    ));
                }
            },
        }
    }
    // One of them may not be the engine's, but its user's.
    if said.windows(2).any(|two| two[0] != two[1]) {
        return Err(refused(
            "annotations that name different sandboxes",
            "a container is in one",
        ));
    }
    Ok(said.pop().flatten())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sandbox_by(annotations: &[(&str, &str)]) -> Result<Option<String>, SpecError> {
        let owned = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
        sandbox(&annotations.iter().map(owned).collect(), "web")
    }

    #[test]
    fn pods_annotations_name_the_sandbox() {
        for (kind, name) in ANNOTATIONS {
            let found = sandbox_by(&[(kind, "container"), (name, "pod")]).unwrap();
            assert_eq!(found.as_deref(), Some("pod"));
            let itself = sandbox_by(&[(kind, "sandbox"), (name, "pod")]).unwrap();
            assert_eq!(itself, None);
            assert!(sandbox_by(&[(kind, "container")]).is_err());
        }
        assert_eq!(sandbox_by(&[]).unwrap(), None);
        let [(containerd, of), (crio, whose)] = ANNOTATIONS;
        let both = |other| {
            sandbox_by(&[
                (containerd, "container"),
                (of, "pod"),
                (crio, "container"),
                (whose, other),
            ])
        };
        assert_eq!(both("pod").unwrap().as_deref(), Some("pod"));
        assert!(both("other").is_err());
    }

    #[test]
    fn paths_name_the_process_whose_namespace_it_is() {
        let shared = |path: &str| Shared {
            kind: LinuxNamespaceType::Network,
            path: path.into(),
        };
        assert_eq!(shared("/proc/204/ns/net").pid(), Some(204));
        for path in ["/proc/204/ns/ipc", "/proc/self/ns/net", "/run/netns/a"] {
            assert_eq!(shared(path).pid(), None, "{path}");
        }
        let guests = shared("/run/netns/a").in_guest(7);
        assert_eq!(guests, Path::new("/proc/7/ns/net"));
    }
}
