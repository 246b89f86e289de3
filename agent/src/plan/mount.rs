//! One entry of the specification's `mounts`: type, source and options, turned into arguments of the mount system calls (pure).
//!
//! See mount(8) for the options and `mount_setattr(2)` for the attributes. Options that the kernel calls attributes of a mount go to
//! the mount; the others are the file system's own.

use std::path::{Path, PathBuf};

use agent_api::{MOUNT_BELOW, NOTIFY_MOUNT, SHARED_MEMORY};
use serde::{Deserialize, Serialize};

use super::PlanError;

/// One mount of a container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Mount {
    /// Inside the container.
    pub(crate) destination: PathBuf,
    pub(crate) kind: MountKind,
    /// Places in it where the kernel mounts by itself what the host has mounted there.
    pub(crate) below: Vec<PathBuf>,
    pub(crate) attributes: Attributes,
    /// For the mount and all below it.
    pub(crate) recursive: Attributes,
    pub(crate) propagation: Option<Propagation>,
    /// Fill the new file system with what it covers.
    pub(crate) copy_up: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum MountKind {
    Bind {
        source: PathBuf,
        recursive: bool,
    },
    New {
        fstype: String,
        source: String,
        options: Vec<(String, Option<String>)>,
    },
    /// The tmpfs that is called so by all that share it. The first one makes it, with these options. The sandbox turns it into a bind.
    Shared {
        name: String,
        options: String,
    },
    /// The directory of its notify socket. The sandbox makes it and turns this into a bind.
    Notify,
    /// The container's cgroup, whatever version was asked for.
    Cgroup,
    /// No new mount: other attributes for the one that is there.
    Remount,
}

/// Attributes of a mount to set and to clear, as `mount_setattr(2)` takes them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Attributes {
    pub(crate) set: u64,
    pub(crate) clear: u64,
}

impl Attributes {
    pub(crate) const RDONLY: u64 = libc::MOUNT_ATTR_RDONLY;
    const NOSUID: u64 = libc::MOUNT_ATTR_NOSUID;
    const NODEV: u64 = libc::MOUNT_ATTR_NODEV;
    const NOEXEC: u64 = libc::MOUNT_ATTR_NOEXEC;
    /// The field of three values; whoever sets one clears the field.
    const ATIME: u64 = libc::MOUNT_ATTR__ATIME;
    const NOATIME: u64 = libc::MOUNT_ATTR_NOATIME;
    const STRICTATIME: u64 = libc::MOUNT_ATTR_STRICTATIME;
    const NODIRATIME: u64 = libc::MOUNT_ATTR_NODIRATIME;
    const NOSYMFOLLOW: u64 = libc::MOUNT_ATTR_NOSYMFOLLOW;

    /// Read-only, and nothing else.
    pub(crate) const READ_ONLY: Self = Self {
        set: Self::RDONLY,
        clear: 0,
    };

    pub(crate) fn is_empty(self) -> bool {
        self == Self::default()
    }

    /// The last of two contrary options counts.
    fn merge(&mut self, other: Self) {
        self.set = (self.set & !other.clear) | other.set;
        self.clear = (self.clear & !other.set) | other.clear;
    }

    fn of(option: &str) -> Option<Self> {
        let set = |bit| Some(Self { set: bit, clear: 0 });
        let clear = |bit| Some(Self { set: 0, clear: bit });
        let atime = |bit| {
            Some(Self {
                set: bit,
                clear: Self::ATIME,
            })
        };
        match option {
            "ro" => set(Self::RDONLY),
            "rw" => clear(Self::RDONLY),
            "nosuid" => set(Self::NOSUID),
            "suid" => clear(Self::NOSUID),
            "nodev" => set(Self::NODEV),
            "dev" => clear(Self::NODEV),
            "noexec" => set(Self::NOEXEC),
            "exec" => clear(Self::NOEXEC),
            "nodiratime" => set(Self::NODIRATIME),
            "diratime" => clear(Self::NODIRATIME),
            "nosymfollow" => set(Self::NOSYMFOLLOW),
            "symfollow" => clear(Self::NOSYMFOLLOW),
            "noatime" => atime(Self::NOATIME),
            "strictatime" => atime(Self::STRICTATIME),
            "relatime" | "atime" | "nostrictatime" | "norelatime" => atime(0),
            _ => None,
        }
    }
}

/// How mount events travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Propagation {
    pub(crate) kind: PropagationKind,
    pub(crate) recursive: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum PropagationKind {
    Private,
    Shared,
    Slave,
    Unbindable,
}

impl Propagation {
    fn of(option: &str) -> Option<Self> {
        let (name, recursive) = match option.strip_prefix('r') {
            Some(name) => (name, true),
            None => (option, false),
        };
        let kind = match name {
            "private" => PropagationKind::Private,
            "shared" => PropagationKind::Shared,
            "slave" => PropagationKind::Slave,
            "unbindable" => PropagationKind::Unbindable,
            _ => return None,
        };
        Some(Self { kind, recursive })
    }

    /// `linux.rootfsPropagation`; a recursive slave where nothing is said.
    pub(super) fn of_rootfs(given: Option<&str>) -> Result<Self, PlanError> {
        match given {
            None | Some("") => Ok(Self {
                kind: PropagationKind::Slave,
                recursive: true,
            }),
            Some(name) => Self::of(name).ok_or_else(|| PlanError::Invalid {
                what: "rootfsPropagation",
                value: name.to_owned(),
            }),
        }
    }
}

/// Attributes of the file system, not of one mount of it.
const FILE_SYSTEM_FLAGS: [&str; 4] = ["sync", "dirsync", "lazytime", "mand"];
/// What every mount is anyway, or, as `iversion`, a file system by itself where it can.
const NO_EFFECT: [&str; 9] = [
    "defaults",
    "async",
    "nolazytime",
    "nomand",
    "loud",
    "silent",
    "iversion",
    "noiversion",
    "nodirsync",
];

pub(super) fn read(given: &oci_spec::runtime::Mount) -> Result<Mount, PlanError> {
    if given.uid_mappings().is_some() || given.gid_mappings().is_some() {
        return Err(PlanError::Conflict {
            what: format!("id-mapped mount of {}", given.destination().display()),
            why: "owners are mapped where the files are, on the host",
        });
    }
    let destination = given.destination().clone();
    let options = given.options().as_deref().unwrap_or_default();
    let fstype = given.typ().as_deref().unwrap_or_default();
    let kind = kind(given, fstype, options)?;
    let mut mount = Mount {
        destination,
        kind,
        below: Vec::new(),
        attributes: Attributes::default(),
        recursive: Attributes::default(),
        propagation: None,
        copy_up: false,
    };
    let mut shared = None;
    for option in options {
        if let Some(path) = option.strip_prefix(MOUNT_BELOW) {
            mount.below.push(path.into());
            continue;
        }
        match option.strip_prefix(SHARED_MEMORY) {
            Some(name) if fstype == "tmpfs" => shared = Some(name.to_owned()),
            _ => apply(&mut mount, option)?,
        }
    }
    if let (Some(name), MountKind::New { options, .. }) = (shared, &mount.kind) {
        let options: Vec<_> = options.iter().map(as_text).collect();
        mount.kind = MountKind::Shared {
            name,
            options: options.join(","),
        };
    }
    Ok(mount)
}

fn as_text((key, value): &(String, Option<String>)) -> String {
    match value {
        Some(value) => format!("{key}={value}"),
        None => key.clone(),
    }
}

fn kind(
    given: &oci_spec::runtime::Mount,
    fstype: &str,
    options: &[String],
) -> Result<MountKind, PlanError> {
    let bind = options.iter().any(|option| option == "bind");
    let rbind = options.iter().any(|option| option == "rbind");
    let source = given.source().clone();
    match fstype {
        _ if options.iter().any(|option| option == "remount") => Ok(MountKind::Remount),
        _ if bind || rbind || fstype == "bind" => {
            let source = source.ok_or(PlanError::Missing("source for a bind mount"))?;
            Ok(MountKind::Bind {
                source,
                recursive: rbind,
            })
        }
        "cgroup" | "cgroup2" => Ok(MountKind::Cgroup),
        NOTIFY_MOUNT => Ok(MountKind::Notify),
        "" | "none" => Err(PlanError::Missing("type for a mount that is no bind mount")),
        _ => {
            let source = source
                .as_deref()
                .and_then(Path::to_str)
                .unwrap_or(fstype)
                .to_owned();
            Ok(MountKind::New {
                fstype: fstype.to_owned(),
                source,
                options: Vec::new(),
            })
        }
    }
}

fn apply(mount: &mut Mount, option: &str) -> Result<(), PlanError> {
    if let Some(attributes) = Attributes::of(option) {
        mount.attributes.merge(attributes);
    } else if let Some(attributes) = option.strip_prefix('r').and_then(Attributes::of) {
        mount.recursive.merge(attributes);
    } else if let Some(propagation) = Propagation::of(option) {
        mount.propagation = Some(propagation);
    } else if matches!(option, "bind" | "rbind" | "remount") || NO_EFFECT.contains(&option) {
        // Known already, or the default.
    } else if option == "tmpcopyup" {
        mount.copy_up = true;
    } else {
        own_option(mount, option)?;
    }
    Ok(())
}

/// An option for the file system itself. A bind mount has none: it is a mount of a file system that is there already.
fn own_option(mount: &mut Mount, option: &str) -> Result<(), PlanError> {
    let unknown = || PlanError::MountOption {
        destination: mount.destination.display().to_string(),
        option: option.to_owned(),
    };
    match &mut mount.kind {
        MountKind::New { options, .. } => options.push(match option.split_once('=') {
            Some((key, value)) => (key.to_owned(), Some(value.to_owned())),
            None => (option.to_owned(), None),
        }),
        MountKind::Bind { .. } | MountKind::Remount if FILE_SYSTEM_FLAGS.contains(&option) => {}
        MountKind::Bind { .. } | MountKind::Remount => return Err(unknown()),
        MountKind::Cgroup | MountKind::Notify | MountKind::Shared { .. } => {}
    }
    Ok(())
}
