//! The namespaces of a container: which are new, which are joined, and what a new one begins with (pure).

use std::path::{Path, PathBuf};

use oci_spec::runtime::{Linux, LinuxIdMapping, LinuxNamespace, LinuxNamespaceType};
use serde::{Deserialize, Serialize};

use super::PlanError;

/// A set of namespaces, as `CLONE_NEW*` flags.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Namespaces(u32);

impl Namespaces {
    pub(crate) const MOUNT: Self = Self(LinuxNamespaceType::Mount as u32);
    pub(crate) const CGROUP: Self = Self(LinuxNamespaceType::Cgroup as u32);
    pub(crate) const UTS: Self = Self(LinuxNamespaceType::Uts as u32);
    pub(crate) const IPC: Self = Self(LinuxNamespaceType::Ipc as u32);
    pub(crate) const USER: Self = Self(LinuxNamespaceType::User as u32);
    pub(crate) const PID: Self = Self(LinuxNamespaceType::Pid as u32);
    pub(crate) const NETWORK: Self = Self(LinuxNamespaceType::Network as u32);
    pub(crate) const TIME: Self = Self(LinuxNamespaceType::Time as u32);

    pub(crate) fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    #[must_use]
    pub(crate) fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    #[must_use]
    pub(crate) fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// The flags, as the system calls take them.
    pub(crate) fn bits(self) -> u32 {
        self.0
    }
}

/// The two id maps of a user namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct IdMaps {
    pub(crate) uids: Vec<IdMap>,
    pub(crate) gids: Vec<IdMap>,
}

/// `size` ids from `inside` on are those from `outside` on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct IdMap {
    pub(crate) inside: u32,
    pub(crate) outside: u32,
    pub(crate) size: u32,
}

impl IdMap {
    fn of(mappings: &[LinuxIdMapping]) -> Vec<Self> {
        mappings
            .iter()
            .map(|map| Self {
                inside: map.container_id(),
                outside: map.host_id(),
                size: map.size(),
            })
            .collect()
    }

    /// What `id` of the namespace is outside it; none where it is not mapped.
    pub(crate) fn outside(maps: &[Self], id: u32) -> Option<u32> {
        maps.iter().find_map(|map| {
            let offset = id
                .checked_sub(map.inside)
                .filter(|offset| *offset < map.size)?;
            map.outside.checked_add(offset)
        })
    }
}

impl IdMaps {
    /// Both lists or none; one alone is an error.
    pub(super) fn of(
        uids: Option<&Vec<LinuxIdMapping>>,
        gids: Option<&Vec<LinuxIdMapping>>,
    ) -> Result<Option<Self>, PlanError> {
        let list = |given: Option<&Vec<LinuxIdMapping>>| {
            IdMap::of(given.map(Vec::as_slice).unwrap_or_default())
        };
        let maps = Self {
            uids: list(uids),
            gids: list(gids),
        };
        match (maps.uids.is_empty(), maps.gids.is_empty()) {
            (true, true) => Ok(None),
            (false, false) => Ok(Some(maps)),
            _ => Err(PlanError::Missing(
                "uidMappings or gidMappings: one needs the other",
            )),
        }
    }
}

/// How far a clock of a new time namespace is ahead.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct TimeOffset {
    /// As `/proc/self/timens_offsets` calls it.
    pub(crate) clock: String,
    pub(crate) seconds: i64,
    pub(crate) nanoseconds: u32,
}

/// What a container does about namespaces.
#[derive(Debug)]
pub(super) struct Layout {
    pub(super) unshare: Namespaces,
    /// The user namespace is the last: with it go the privileges that the others may ask for.
    pub(super) join: Vec<(Namespaces, PathBuf)>,
    pub(super) id_maps: Option<IdMaps>,
    pub(super) time_offsets: Vec<TimeOffset>,
}

impl Layout {
    /// All that the container is in.
    pub(super) fn all(&self) -> Namespaces {
        self.join
            .iter()
            .fold(self.unshare, |all, (kind, _)| all.with(*kind))
    }
}

pub(super) fn read(linux: &Linux) -> Result<Layout, PlanError> {
    let mut layout = Layout {
        unshare: Namespaces::default(),
        join: Vec::new(),
        id_maps: None,
        time_offsets: Vec::new(),
    };
    for namespace in linux.namespaces().iter().flatten() {
        add(&mut layout, namespace)?;
    }
    if !layout.unshare.contains(Namespaces::MOUNT) {
        return Err(no_mount_namespace());
    }
    layout
        .join
        .sort_by_key(|(kind, _)| *kind == Namespaces::USER);
    if layout.all().contains(Namespaces::USER) {
        let maps = IdMaps::of(linux.uid_mappings().as_ref(), linux.gid_mappings().as_ref())?;
        layout.id_maps = Some(maps.ok_or(PlanError::Missing(
            "linux.uidMappings and linux.gidMappings for its user namespace",
        ))?);
    }
    layout.time_offsets = time_offsets(linux, layout.unshare)?;
    Ok(layout)
}

/// The process whose namespace is at a path of `/proc`.
pub(crate) fn process_of(path: &Path) -> Option<i32> {
    let mut names = path.strip_prefix("/proc").ok()?.iter();
    let pid = names.next()?.to_str()?.parse().ok()?;
    (names.next()? == "ns").then_some(pid)
}

pub(super) fn no_mount_namespace() -> PlanError {
    PlanError::Unsupported {
        what: "a container without a mount namespace of its own".to_owned(),
    }
}

fn add(layout: &mut Layout, namespace: &LinuxNamespace) -> Result<(), PlanError> {
    let kind = Namespaces(namespace.typ() as u32);
    if layout.all().contains(kind) {
        return Err(PlanError::Conflict {
            what: format!("linux.namespaces: {}", namespace.typ()),
            why: "given twice",
        });
    }
    let path = namespace.path().clone();
    match path.filter(|path| !path.as_os_str().is_empty()) {
        Some(path) if path.is_absolute() => layout.join.push((kind, path)),
        Some(path) => {
            return Err(PlanError::Invalid {
                what: "linux.namespaces.path",
                value: path.display().to_string(),
            });
        }
        None => layout.unshare = layout.unshare.with(kind),
    }
    Ok(())
}

fn time_offsets(linux: &Linux, unshare: Namespaces) -> Result<Vec<TimeOffset>, PlanError> {
    let mut offsets = Vec::new();
    for (clock, offset) in linux.time_offsets().iter().flatten() {
        if !unshare.contains(Namespaces::TIME) {
            return Err(PlanError::Conflict {
                what: "linux.timeOffsets".to_owned(),
                why: "there is no new time namespace to set them in",
            });
        }
        if !matches!(clock.as_str(), "monotonic" | "boottime") {
            return Err(PlanError::Invalid {
                what: "linux.timeOffsets",
                value: clock.clone(),
            });
        }
        offsets.push(TimeOffset {
            clock: clock.clone(),
            seconds: offset.secs().unwrap_or(0),
            nanoseconds: offset.nanosecs().unwrap_or(0),
        });
    }
    Ok(offsets)
}
