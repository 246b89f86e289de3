//! `linux.sysctl`: files below `/proc/sys` that belong to a namespace of the container (pure).
//!
//! One that belongs to none of them is the whole machine's, other containers' of the sandbox included, and is refused.

use std::collections::HashMap;
use std::path::{Component, Path, PathBuf};

use super::{Namespaces, PlanError};

/// Of the IPC namespace, beside all below `fs/mqueue`.
const IPC: [&str; 8] = [
    "kernel/msgmax",
    "kernel/msgmnb",
    "kernel/msgmni",
    "kernel/sem",
    "kernel/shmall",
    "kernel/shmmax",
    "kernel/shmmni",
    "kernel/shm_rmid_forced",
];

/// Files below `/proc/sys`, and what is written to them. `own` are the container's namespaces.
pub(super) fn read(
    given: Option<&HashMap<String, String>>,
    own: Namespaces,
) -> Result<Vec<(PathBuf, String)>, PlanError> {
    let mut sysctls = Vec::new();
    for (name, value) in given.into_iter().flatten() {
        let path = path_of(name).ok_or_else(|| PlanError::Invalid {
            what: "linux.sysctl",
            value: name.clone(),
        })?;
        check(name, &path, own)?;
        sysctls.push((path, value.clone()));
    }
    Ok(sysctls)
}

/// `net.ipv4.ip_forward` is `net/ipv4/ip_forward`; a name whose first separator is a slash keeps its dots (they are part of an
/// interface's name), and one whose first is a dot has them for slashes.
fn path_of(name: &str) -> Option<PathBuf> {
    let path = match name.find(['.', '/']) {
        Some(first) if name[first..].starts_with('.') => name
            .chars()
            .map(|c| match c {
                '.' => '/',
                '/' => '.',
                c => c,
            })
            .collect(),
        _ => name.to_owned(),
    };
    let path = PathBuf::from(path);
    let mut parts = path.components();
    let plain = parts.all(|part| matches!(part, Component::Normal(_)));
    (plain && !path.as_os_str().is_empty()).then_some(path)
}

fn check(name: &str, path: &Path, own: Namespaces) -> Result<(), PlanError> {
    let refused = |why| {
        Err(PlanError::Conflict {
            what: format!("linux.sysctl {name}"),
            why,
        })
    };
    if path == Path::new("kernel/hostname") {
        return refused("the hostname has a key of its own, hostname");
    }
    let (needed, why) =
        if IPC.iter().any(|ipc| path == Path::new(ipc)) || path.starts_with("fs/mqueue") {
            (Namespaces::IPC, "the container has no ipc namespace")
        } else if path.starts_with("net") {
            (
                Namespaces::NETWORK,
                "the container has no network namespace",
            )
        } else if path == Path::new("kernel/domainname") {
            (Namespaces::UTS, "the container has no uts namespace")
        } else {
            return refused("belongs to no namespace, and so to the whole machine");
        };
    if own.contains(needed) {
        Ok(())
    } else {
        refused(why)
    }
}
