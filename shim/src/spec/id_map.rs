//! Which mounts have their owners mapped, and by which map (pure).

use oci_spec::runtime::{Linux, LinuxNamespaceType, Mount};

use super::{SpecError, refuse};
use crate::id_map::IdMap;

/// The map of the container's user namespace.
pub(super) fn of_container(linux: &Linux) -> Option<IdMap> {
    let mut namespaces = linux.namespaces().iter().flatten();
    if !namespaces.any(|namespace| namespace.typ() == LinuxNamespaceType::User) {
        return None;
    }
    Some(IdMap {
        uids: linux.uid_mappings().clone()?,
        gids: linux.gid_mappings().clone()?,
        recursive: false,
    })
}

/// Takes the map out of a mount: its own, or, where it only asks for one, the container's.
pub(super) fn take(mount: &mut Mount, own: Option<&IdMap>) -> Result<Option<IdMap>, SpecError> {
    let options = mount.options().clone().unwrap_or_default();
    let recursive = options.iter().any(|option| option == "ridmap");
    let asked = recursive || options.iter().any(|option| option == "idmap");
    let uids = mount.uid_mappings().clone().unwrap_or_default();
    let gids = mount.gid_mappings().clone().unwrap_or_default();
    if !asked && uids.is_empty() && gids.is_empty() {
        return Ok(None);
    }
    let rest = options
        .into_iter()
        .filter(|option| option != "idmap" && option != "ridmap");
    mount.set_options(Some(rest.collect()));
    mount.set_uid_mappings(None);
    mount.set_gid_mappings(None);
    match (uids.is_empty(), gids.is_empty(), own) {
        (false, false, _) => Ok(Some(IdMap {
            uids,
            gids,
            recursive,
        })),
        (true, true, Some(own)) => Ok(Some(IdMap {
            recursive,
            ..own.clone()
        })),
        _ => Err(SpecError::Missing(
            "uidMappings or gidMappings of an id-mapped mount",
        )),
    }
}

/// Says that `mount`, which is no bind, cannot be mapped.
pub(super) fn refused(mount: &Mount) -> SpecError {
    let what = format!("an id-mapped mount of {}", mount.destination().display());
    refuse::refused(what, "only files of the host, bound, have owners to map")
}
