//! The container's mounts, by the descriptor-based calls: a mount is made detached, given its attributes, and then moved to its place.

use std::ffi::CStr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, fchmod, fstat, openat2};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags,
    OpenTreeFlags, fsconfig_create, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen,
    move_mount, open_tree,
};

use super::mask::Covers;
use super::root::{Root, is_directory};
use super::{Doing, StepError, copy_up, quoted};
use crate::plan::{
    Attributes, Container, Mount, MountKind, Namespaces, Propagation, PropagationKind,
};
use crate::syscall::checked;

/// Mounts that become read-only only when nothing is to be put into them any more.
#[derive(Debug)]
pub(super) struct Late<'a>(Vec<&'a Mount>);

/// Mounts everything in the specification's order. `cgroup` is the directory of the container's cgroup.
pub(super) fn mount_all<'a>(
    root: &Root,
    container: &'a Container,
    cgroup: &Path,
) -> Result<Late<'a>, StepError> {
    let mut late = Vec::new();
    for mount in &container.mounts {
        let doing = || format!("cannot mount {}", quoted(&mount.destination));
        let mut attributes = mount.attributes;
        if is_filled_later(mount) && attributes.set & Attributes::RDONLY != 0 {
            attributes.set &= !Attributes::RDONLY;
            late.push(mount);
        }
        if mount.kind == MountKind::Remount {
            let place = root.resolve(&mount.destination).doing(doing)?;
            change(&place, mount, attributes).doing(doing)?;
            continue;
        }
        let covered = covered_mode(root, mount).doing(doing)?;
        let tree = detached(mount, container, cgroup).doing(doing)?;
        let place = place(root, mount, &tree).doing(doing)?;
        if let Some(mode) = covered {
            fchmod(reopen_directory(&tree).doing(doing)?, mode).doing(doing)?;
        }
        change(&tree, mount, attributes).doing(doing)?;
        if mount.copy_up {
            copy_up::copy(root, &mount.destination, &tree).doing(doing)?;
        }
        attach(&tree, &place).doing(doing)?;
    }
    Ok(Late(late))
}

/// Into which places of further mounts, or device nodes, are made.
fn is_filled_later(mount: &Mount) -> bool {
    mount.destination == Path::new("/dev") || tmpfs_options(mount).is_some()
}

/// The options of a new tmpfs.
fn tmpfs_options(mount: &Mount) -> Option<&[(String, Option<String>)]> {
    match &mount.kind {
        MountKind::New {
            fstype, options, ..
        } if fstype == "tmpfs" => Some(options),
        _ => None,
    }
}

/// The mode that a tmpfs takes over from the directory that it covers, because it is given none.
fn covered_mode(root: &Root, mount: &Mount) -> Result<Option<Mode>, Errno> {
    let given = |(key, _): &(String, _)| key == "mode";
    if tmpfs_options(mount).is_none_or(|options| options.iter().any(given)) {
        return Ok(None);
    }
    match root.resolve(&mount.destination) {
        Ok(covered) => Ok(Some(Mode::from_raw_mode(fstat(&covered)?.st_mode & 0o7777))),
        Err(Errno::NOENT) => Ok(None),
        Err(errno) => Err(errno),
    }
}

/// Gives a mount, and all below it, what the specification says; `attributes` are those of the mount itself.
fn change(tree: &OwnedFd, mount: &Mount, attributes: Attributes) -> Result<(), Errno> {
    let (below, own) = match mount.propagation {
        Some(given) if given.recursive => (Some(given), None),
        given => (None, given),
    };
    set_attributes(tree, attributes, own)?;
    set_attributes_below(tree, mount.recursive, below)
}

/// Takes away what the container may not write or see. After this its root may be read-only.
pub(super) fn restrict(
    root: &Root,
    container: &Container,
    late: &Late<'_>,
    mut covers: Covers,
) -> Result<(), StepError> {
    for path in &container.readonly_paths {
        skip_missing(make_readonly(root, path))
            .doing(|| format!("cannot make {} read-only", quoted(path)))?;
    }
    for path in &container.masked_paths {
        skip_missing(covers.mask(root, path)).doing(|| format!("cannot mask {}", quoted(path)))?;
    }
    for mount in &late.0 {
        let doing = || format!("cannot make {} read-only", quoted(&mount.destination));
        let place = root.resolve(&mount.destination).doing(doing)?;
        set_attributes(&place, Attributes::READ_ONLY, None).doing(doing)?;
    }
    if container.readonly {
        let root = root
            .resolve(Path::new("/"))
            .doing(|| "cannot open /".to_owned())?;
        set_attributes(&root, Attributes::READ_ONLY, None)
            .doing(|| "cannot make / read-only".to_owned())?;
    }
    Ok(())
}

/// A mount of the container that is nowhere yet.
fn detached(mount: &Mount, container: &Container, cgroup: &Path) -> Result<OwnedFd, Errno> {
    match &mount.kind {
        MountKind::Bind { source, recursive } => {
            // Those with an r in front are for all, and are taken over from the mount above.
            let _held = match mount.attributes.is_empty() {
                true => Vec::new(),
                false => mount_below(source, &mount.below)?,
            };
            clone_tree(source, *recursive)
        }
        MountKind::Cgroup if container.unshare.contains(Namespaces::CGROUP) => {
            new_file_system("cgroup2", "cgroup", &[])
        }
        MountKind::Cgroup => clone_tree(cgroup, false),
        MountKind::New {
            fstype,
            source,
            options,
        } => match new_file_system(fstype, source, options) {
            // A user namespace may not mount the sysfs of a network namespace that it does not own.
            Err(Errno::PERM) if fstype == "sysfs" => clone_tree(Path::new("/sys"), true),
            made => made,
        },
        // Nothing is made for a remount, and what is shared has become a bind.
        MountKind::Remount | MountKind::Notify | MountKind::Shared { .. } => Err(Errno::INVAL),
    }
}

/// Has the kernel mount below `source` what it would mount later by itself, with the attributes that the mount above has by then. A copy
/// that is made of them stays; of themselves the kernel keeps those that somebody uses, and so does the caller by their descriptors. What the
/// host has covered is not there.
fn mount_below(source: &Path, places: &[PathBuf]) -> Result<Vec<OwnedFd>, Errno> {
    if places.is_empty() {
        return Ok(Vec::new());
    }
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    let top = openat2(CWD, source, flags, Mode::empty(), ResolveFlags::empty())?;
    let found = places
        .iter()
        .filter_map(|place| openat2(&top, place, flags, Mode::empty(), resolve).ok());
    Ok(found.collect())
}

pub(super) fn new_file_system(
    fstype: &str,
    source: &str,
    options: &[(String, Option<String>)],
) -> Result<OwnedFd, Errno> {
    let context = fsopen(fstype, FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(&context, "source", source)?;
    for (key, value) in options {
        match value {
            Some(value) => fsconfig_set_string(&context, key.as_str(), value.as_str())?,
            None => fsconfig_set_flag(&context, key.as_str())?,
        }
    }
    fsconfig_create(&context)?;
    fsmount(
        &context,
        FsMountFlags::FSMOUNT_CLOEXEC,
        MountAttrFlags::empty(),
    )
}

/// A copy of the mount, or the mounts, at a path outside the container.
fn clone_tree(source: &Path, recursive: bool) -> Result<OwnedFd, Errno> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    open_tree(CWD, source, flags)
}

/// Where the mount goes: a directory for a directory, a file for a file, made where it is missing.
fn place(root: &Root, mount: &Mount, tree: &OwnedFd) -> Result<OwnedFd, Errno> {
    if let MountKind::New { fstype, .. } = &mount.kind
        && matches!(fstype.as_str(), "proc" | "sysfs")
    {
        // A link here could put the file system, with what is later masked in it, elsewhere.
        drop(root.directory(&mount.destination)?);
        return root.resolve_plain(&mount.destination);
    }
    if is_directory(tree)? {
        root.directory(&mount.destination)
    } else {
        root.file(&mount.destination)
    }
}

/// Moves a detached mount to its place.
pub(super) fn attach(tree: impl AsFd, place: impl AsFd) -> Result<(), Errno> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(tree, "", place, "", flags)
}

/// A detached copy of the mount that an open file is in, with the file as its root.
pub(super) fn clone_of(file: impl AsFd, recursive: bool) -> Result<OwnedFd, Errno> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH;
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    open_tree(file, "", flags)
}

fn make_readonly(root: &Root, path: &Path) -> Result<(), Errno> {
    let place = root.resolve(path)?;
    let tree = clone_of(&place, true)?;
    set_attributes_below(&tree, Attributes::READ_ONLY, None)?;
    attach(&tree, &place)
}

/// What a container does not have need not be hidden.
fn skip_missing(result: Result<(), Errno>) -> Result<(), Errno> {
    match result {
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(()),
        other => other,
    }
}

pub(super) fn propagation_flags(propagation: Propagation) -> MountPropagationFlags {
    let kind = match propagation.kind {
        PropagationKind::Private => MountPropagationFlags::PRIVATE,
        PropagationKind::Shared => MountPropagationFlags::SHARED,
        PropagationKind::Slave => MountPropagationFlags::DOWNSTREAM,
        PropagationKind::Unbindable => MountPropagationFlags::UNBINDABLE,
    };
    if propagation.recursive {
        kind | MountPropagationFlags::REC
    } else {
        kind
    }
}

/// Changes one mount.
pub(super) fn set_attributes(
    mount: impl AsFd,
    attributes: Attributes,
    propagation: Option<Propagation>,
) -> Result<(), Errno> {
    set(mount, attributes, propagation, libc::AT_EMPTY_PATH)
}

/// Changes a mount and all below it.
fn set_attributes_below(
    mount: impl AsFd,
    attributes: Attributes,
    propagation: Option<Propagation>,
) -> Result<(), Errno> {
    set(
        mount,
        attributes,
        propagation,
        libc::AT_EMPTY_PATH | libc::AT_RECURSIVE,
    )
}

fn set(
    mount: impl AsFd,
    attributes: Attributes,
    propagation: Option<Propagation>,
    flags: i32,
) -> Result<(), Errno> {
    if attributes.is_empty() && propagation.is_none() {
        return Ok(());
    }
    let propagation = propagation.map_or(0, |given| {
        (propagation_flags(given) - MountPropagationFlags::REC).bits()
    });
    let attr = libc::mount_attr {
        attr_set: attributes.set,
        attr_clr: attributes.clear,
        propagation: u64::from(propagation),
        userns_fd: 0,
    };
    mount_setattr(mount, &attr, flags)
}

fn mount_setattr(mount: impl AsFd, attr: &libc::mount_attr, flags: i32) -> Result<(), Errno> {
    let path: &CStr = c"";
    // SAFETY: the descriptor is open, the path is a C string, and `attr` is a mount_attr of the size given; the call keeps none of them.
    checked(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_fd().as_raw_fd(),
            path.as_ptr(),
            flags,
            std::ptr::from_ref(attr),
            size_of::<libc::mount_attr>(),
        )
    })
    .map(drop)
}

/// Opens a directory for reading that was resolved before.
pub(super) fn reopen_directory(fd: impl AsFd) -> Result<OwnedFd, Errno> {
    rustix::fs::openat(
        fd,
        ".",
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
}
