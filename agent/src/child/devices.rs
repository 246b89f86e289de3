//! The container's `/dev`: device nodes and the links that every container has (OCI runtime specification, "Default Devices" and
//! "Dev symbolic links").

use std::os::fd::AsFd;
use std::path::Path;

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, Uid, chmodat, chownat, makedev, mknodat, statat, symlinkat,
    unlinkat,
};
use rustix::io::Errno;
use rustix::process::umask;

use super::mounts::{attach, clone_of};
use super::root::Root;
use super::{Doing, StepError, quoted};
use crate::plan::{Container, Device, DeviceKind};

const LINKS: [(&str, &str); 5] = [
    ("/proc/self/fd", "/dev/fd"),
    ("/proc/self/fd/0", "/dev/stdin"),
    ("/proc/self/fd/1", "/dev/stdout"),
    ("/proc/self/fd/2", "/dev/stderr"),
    ("/proc/kcore", "/dev/core"),
];

/// Makes the nodes and links. Those that the image has already are left as they are; where it has another file in place of a device that the
/// specification lists, that is an error.
pub(super) fn make(root: &Root, container: &Container) -> Result<(), StepError> {
    let mask = umask(Mode::empty());
    for device in &container.devices {
        let made = match make_node(root, device) {
            // Neither a user namespace nor every server of files may make device nodes; those of the guest can be bound.
            Err(Errno::PERM) => bind(root, device),
            made => made,
        };
        made.doing(|| format!("cannot make device {}", quoted(&device.path)))?;
    }
    umask(mask);
    for (target, link) in LINKS {
        link_at(root, target, Path::new(link)).doing(|| format!("cannot make link {link}"))?;
    }
    pty_multiplexer(root).doing(|| "cannot make link /dev/ptmx".to_owned())
}

fn make_node(root: &Root, device: &Device) -> Result<(), Errno> {
    let (parent, name) = root.parent(&device.path)?;
    let kind = match device.kind {
        DeviceKind::Block => FileType::BlockDevice,
        DeviceKind::Character => FileType::CharacterDevice,
        DeviceKind::Fifo => FileType::Fifo,
    };
    let mode = Mode::from_raw_mode(device.mode);
    let number = makedev(device.major, device.minor);
    match mknodat(&parent, name, kind, mode, number) {
        Err(Errno::EXIST) if device.listed => {
            let found = statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW)?;
            let same_kind = FileType::from_raw_mode(found.st_mode) == kind;
            let same_number = kind == FileType::Fifo || found.st_rdev == number;
            return if same_kind && same_number {
                Ok(())
            } else {
                Err(Errno::EXIST)
            };
        }
        Err(Errno::EXIST) => return Ok(()),
        made => made?,
    }
    let (uid, gid) = (Uid::from_raw(device.uid), Gid::from_raw(device.gid));
    chownat(
        &parent,
        name,
        Some(uid),
        Some(gid),
        AtFlags::SYMLINK_NOFOLLOW,
    )?;
    chmodat(&parent, name, mode, AtFlags::empty())
}

fn bind(root: &Root, device: &Device) -> Result<(), Errno> {
    let guest = rustix::fs::open(
        &device.path,
        rustix::fs::OFlags::PATH | rustix::fs::OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    let place = root.file(&device.path)?;
    attach(clone_of(guest, false)?, place)
}

fn link_at(root: &Root, target: &str, link: &Path) -> Result<(), Errno> {
    let (parent, name) = root.parent(link)?;
    match symlinkat(target, parent.as_fd(), name) {
        Err(Errno::EXIST) => Ok(()),
        made => made,
    }
}

/// `/dev/ptmx` is always that of the container's own `/dev/pts`.
fn pty_multiplexer(root: &Root) -> Result<(), Errno> {
    let (parent, name) = root.parent(Path::new("/dev/ptmx"))?;
    match unlinkat(&parent, name, AtFlags::empty()) {
        // Without a place to write there is nothing to replace either.
        Ok(()) | Err(Errno::NOENT) => symlinkat("pts/ptmx", &parent, name),
        Err(Errno::ROFS | Errno::BUSY) => Ok(()),
        Err(errno) => Err(errno),
    }
}
