//! Mounts whose files have other owners when seen through them.
//!
//! The map is that of a user namespace, which is made for the mount and goes with it (see `mount_setattr(2)`, "ID-mapped mounts"). Only
//! who has privileges over the file system may map it, so that stage 1 makes these mounts, detached, and stage 2 puts them where they
//! belong. Not every file system can be mapped.

use std::collections::HashMap;
use std::os::fd::OwnedFd;

use rustix::io::Errno;

use super::clone::user_namespace;
use super::mounts::{clone_tree, map_owners};
use super::stages::write_maps;
use super::{Doing, StepError, quoted};
use crate::plan::{Container, IdMapping, MountKind};

/// Detached mounts, by their place in the specification's list.
pub(super) type Prepared = HashMap<usize, OwnedFd>;

/// Makes all of a container's.
pub(super) fn prepare(container: &Container) -> Result<Prepared, StepError> {
    let mut prepared = Prepared::new();
    for (index, mount) in container.mounts.iter().enumerate() {
        let (Some(mapping), MountKind::Bind { source, recursive }) = (&mount.id_map, &mount.kind)
        else {
            continue;
        };
        let tree = clone_tree(source, *recursive)
            .doing(|| format!("cannot mount {}", quoted(&mount.destination)))?;
        map(&tree, mapping)
            .doing(|| format!("cannot id-map the mount of {}", quoted(&mount.destination)))?;
        prepared.insert(index, tree);
    }
    Ok(prepared)
}

fn map(tree: &OwnedFd, mapping: &IdMapping) -> Result<(), super::StepErrno> {
    let namespace = user_namespace(|pid| write_maps(pid, &mapping.maps))?;
    match map_owners(tree, &namespace, mapping.recursive) {
        // What the kernel says of a file system that does not know how.
        Err(Errno::INVAL) => Err(Errno::OPNOTSUPP.into()),
        mapped => Ok(mapped?),
    }
}
