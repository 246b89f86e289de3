//! File systems that a kernel makes about itself (proc, sysfs, devtmpfs …): the host's say nothing true about a guest, and much about the
//! host.
//!
//! What such a file system is told by is its type, wherever it is mounted and whichever link led there. A mount source that is in one is
//! refused. Where one is mounted below a source, as with `rbind /`, it is left out of the copy:
//!
//! ```text
//!   the copy, attached nowhere ─► a mount namespace of a thread's own ─► the mounts in question detached ─► copied again ─► the thread ends
//! ```
//!
//! since a mount that is attached nowhere can have nothing taken out of it. The sandbox's own share, which the supervisor sees, is treated alike. Mounts that come later by propagation are not looked at. Ways to
//! fail: such a mount is covered by another one, or the kernel refuses a namespace or a mount.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::OsStringExt as _;
use std::path::PathBuf;
use std::thread;

use nix::sched::CloneFlags;
use rustix::fs::{AtFlags, CWD, Mode, OFlags, ResolveFlags, StatxFlags};
use rustix::mount::{MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags};

use super::place;

/// By the names that the mount table has for them.
const KERNELS: [&str; 27] = [
    "apparmorfs",
    "binder",
    "binfmt_misc",
    "bpf",
    "cgroup",
    "cgroup2",
    "configfs",
    "cpuset",
    "debugfs",
    "devpts",
    "devtmpfs",
    "efivarfs",
    "functionfs",
    "fusectl",
    "mqueue",
    "nfsd",
    "nsfs",
    "proc",
    "pstore",
    "resctrl",
    "rpc_pipefs",
    "securityfs",
    "selinuxfs",
    "smackfs",
    "sysfs",
    "tracefs",
    "xenfs",
];

/// By what they say of themselves, for a mount that this process's table does not have: `statfs(2)`, `linux/magic.h`.
const MAGIC_NUMBERS: [(u64, &str); 16] = [
    (0x6165_676c, "pstore"),
    (0x0027_e0eb, "cgroup"),
    (0x6367_7270, "cgroup2"),
    (0x6462_6720, "debugfs"),
    (0x7363_6673, "securityfs"),
    (0x7472_6163, "tracefs"),
    (0x4249_4e4d, "binfmt_misc"),
    (0x1cd1, "devpts"),
    (0x9fa0, "proc"),
    (0x6265_6572, "sysfs"),
    (0xcafe_4a11, "bpf"),
    (0x6e73_6673, "nsfs"),
    (0xf97c_ff8c, "selinuxfs"),
    (0x1980_0202, "mqueue"),
    (0x6265_6570, "configfs"),
    (0xde5e_81e4, "efivarfs"),
];

/// A file system by its number: that of its device, major and minor.
pub(super) type Device = (u32, u32);

/// The mounts that this process sees.
#[derive(Debug)]
pub(super) struct Table {
    mounts: Vec<Mount>,
    /// The share's own file system, which a guest would find a second time, and past what protects it.
    share: Option<Device>,
}

#[derive(Debug, PartialEq, Eq)]
struct Mount {
    id: u64,
    parent: u64,
    device: Device,
    point: PathBuf,
    kind: String,
}

impl Table {
    /// As it is now; `share` is the share's own file system, if it is there.
    pub(super) fn read(share: Option<Device>) -> io::Result<Self> {
        let mounts = mounts(&std::fs::read("/proc/thread-self/mountinfo")?);
        Ok(Self { mounts, share })
    }

    /// See [`Table::read`].
    pub(super) fn share(&self) -> Option<Device> {
        self.share
    }

    /// The type of the file system that `source` is in, if a guest must not have it.
    pub(super) fn refuses(&self, source: &OwnedFd) -> io::Result<Option<String>> {
        let id = mount_id(source)?;
        if let Some(mount) = self.mounts.iter().find(|mount| mount.id == id) {
            return Ok(self.excludes(mount).then(|| mount.kind.clone()));
        }
        let magic = u64::try_from(rustix::fs::fstatfs(source)?.f_type).unwrap_or_default();
        let known = MAGIC_NUMBERS.iter().find(|(number, _)| *number == magic);
        Ok(known.map(|(_, kind)| (*kind).to_owned()))
    }

    /// Whether a copy of `source` and all below it may have such a file system in it.
    pub(super) fn may_have_below(&self, source: &OwnedFd) -> io::Result<bool> {
        let id = mount_id(source)?;
        if self.mounts.iter().all(|mount| mount.id != id) {
            return Ok(true);
        }
        let path = std::fs::read_link(place::path_of(source.as_fd()))?;
        let mut excluded = self.mounts.iter().filter(|mount| self.excludes(mount));
        Ok(excluded.any(|mount| mount.point.starts_with(&path)))
    }

    fn excludes(&self, mount: &Mount) -> bool {
        KERNELS.contains(&mount.kind.as_str()) || self.share == Some(mount.device)
    }

    /// Those that are below mount `top`, itself not included, the outer ones first.
    fn below(&self, top: u64) -> Vec<&Mount> {
        let mut inner: Vec<&Mount> = Vec::new();
        // The table has a mount after the one that it is on, unless it was moved.
        let mut last = None;
        while last != Some(inner.len()) {
            last = Some(inner.len());
            for mount in &self.mounts {
                let is_in = |id| id == top || inner.iter().any(|mount| mount.id == id);
                if mount.id != top && !is_in(mount.id) && is_in(mount.parent) {
                    inner.push(mount);
                }
            }
        }
        inner
    }

    /// Where other mounts are in the mount `tree`, as paths in it, the outer ones first.
    pub(super) fn places_in(&self, tree: &OwnedFd) -> io::Result<Vec<PathBuf>> {
        let id = mount_id(tree)?;
        let Some(top) = self.mounts.iter().find(|mount| mount.id == id) else {
            return Ok(Vec::new());
        };
        let inner = self.below(id).into_iter();
        let places = inner.filter_map(|mount| mount.point.strip_prefix(&top.point).ok());
        // Another one on top of it is what is seen in its place.
        let places = places.filter(|place| !place.as_os_str().is_empty());
        Ok(places.map(PathBuf::from).collect())
    }
}

/// A copy of `tree`, which is attached nowhere, without what a guest must not have; and where that was.
pub(super) fn left_out(
    tree: &OwnedFd,
    share: Option<Device>,
) -> io::Result<(OwnedFd, Vec<PathBuf>)> {
    thread::scope(|scope| {
        let thread = thread::Builder::new()
            .name("mounts".into())
            .spawn_scoped(scope, || in_a_namespace(tree, share))?;
        thread
            .join()
            .map_err(|_| io::Error::other("the thread that mounts has panicked"))?
    })
}

/// The calling thread ends in a mount namespace of its own.
fn in_a_namespace(tree: &OwnedFd, share: Option<Device>) -> io::Result<(OwnedFd, Vec<PathBuf>)> {
    nix::sched::unshare(CloneFlags::CLONE_NEWNS)?;
    let rslave = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
    rustix::mount::mount_change("/", rslave)?;
    let itself = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    // A mount on the root directory covers nothing: paths begin below it.
    rustix::mount::move_mount(tree, "", CWD, "/", itself)?;
    let top = mount_id(tree)?;
    let mut out = Vec::new();
    loop {
        let table = Table::read(share)?;
        let mut excluded = table.below(top);
        excluded.retain(|mount| table.excludes(mount));
        let Some(first) = excluded.first().map(|mount| mount.point.clone()) else {
            break;
        };
        let before = out.len();
        for mount in excluded {
            if take_out(tree, mount)? {
                out.push(mount.point.clone());
            }
        }
        if out.len() == before {
            let text = format!("{} in it is covered by another mount", first.display());
            return Err(io::Error::other(text));
        }
    }
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH
        | OpenTreeFlags::AT_RECURSIVE;
    Ok((rustix::mount::open_tree(tree, "", flags)?, out))
}

/// Detaches a mount in `tree`; false if it is gone, or covered.
fn take_out(tree: &OwnedFd, mount: &Mount) -> io::Result<bool> {
    let path = mount.point.strip_prefix("/").unwrap_or(&mount.point);
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let found = match rustix::fs::openat2(tree, path, flags, Mode::empty(), resolve) {
        Ok(found) => found,
        Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => return Ok(false),
        Err(error) => return Err(error.into()),
    };
    if mount_id(&found)? != mount.id {
        return Ok(false);
    }
    rustix::mount::unmount(place::path_of(found.as_fd()), UnmountFlags::DETACH)?;
    Ok(true)
}

fn mount_id(fd: &OwnedFd) -> io::Result<u64> {
    let stat = rustix::fs::statx(fd, "", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID)?;
    Ok(stat.stx_mnt_id)
}

/// The mounts of a `mountinfo` file (pure): id, parent, device, root, mount point, options, any number of fields, `-`, type, …
fn mounts(table: &[u8]) -> Vec<Mount> {
    let mount = |line: &[u8]| {
        let mut fields = line.split(|byte| *byte == b' ');
        let mut text = || std::str::from_utf8(fields.next()?).ok();
        let (id, parent) = (text()?.parse().ok()?, text()?.parse().ok()?);
        let (major, minor) = text()?.split_once(':')?;
        let point = fields.nth(1)?;
        let kind = fields.skip_while(|field| *field != b"-").nth(1)?;
        Some(Mount {
            id,
            parent,
            device: (major.parse().ok()?, minor.parse().ok()?),
            point: PathBuf::from(OsString::from_vec(unescaped(point))),
            kind: String::from_utf8_lossy(kind).into_owned(),
        })
    };
    table
        .split(|byte| *byte == b'\n')
        .filter_map(mount)
        .collect()
}

/// The table writes a blank, a tab, a line feed and a backslash as a backslash and three octal digits.
fn unescaped(field: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let [first, behind @ ..] = rest {
        let octal = |digit: u8| {
            (b'0'..=b'7')
                .contains(&digit)
                .then(|| u16::from(digit - b'0'))
        };
        let byte = match (first, behind) {
            (b'\\', [a, b, c, ..]) => octal(*a)
                .zip(octal(*b))
                .zip(octal(*c))
                .and_then(|((a, b), c)| u8::try_from(a * 64 + b * 8 + c).ok()),
            _ => None,
        };
        rest = if byte.is_some() { &behind[3..] } else { behind };
        bytes.push(byte.unwrap_or(*first));
    }
    bytes
}

/// A mount is found wherever it is and whatever its path has, and what is below one ends.
#[cfg(fuzzing)]
pub(crate) fn read_table(bytes: &[u8]) {
    let table = Table {
        mounts: mounts(bytes),
        share: None,
    };
    if let Some(top) = table.mounts.first() {
        assert!(table.below(top.id).len() < table.mounts.len());
    }
    // show_mountinfo() of Linux: what would end a field is escaped.
    let escaped: Vec<u8> = bytes
        .iter()
        .flat_map(|byte| match byte {
            b' ' | b'\t' | b'\n' | b'\\' | b'#' => format!("\\{byte:03o}").into_bytes(),
            other => vec![*other],
        })
        .collect();
    let line = [
        b"36 35 98:0 / /",
        &escaped[..],
        b" rw master:1 - proc proc rw\n",
    ]
    .concat();
    let point = [b"/", bytes].concat();
    let wanted = Mount {
        id: 36,
        parent: 35,
        device: (98, 0),
        point: PathBuf::from(OsString::from_vec(point)),
        kind: "proc".to_owned(),
    };
    assert_eq!(mounts(&line), [wanted]);
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn a_mount_table_is_read() {
        let table = b"22 28 0:21 / /proc rw,nosuid shared:5 master:2 - proc proc rw\n\
            30 22 0:40 /x /a\\040b\\134c rw - ext4 /dev/sda1 rw\nrubbish\n";
        let read = mounts(table);
        assert_eq!(read.len(), 2);
        assert_eq!(
            (read[0].id, read[0].parent, read[0].kind.as_str()),
            (22, 28, "proc")
        );
        assert_eq!(read[1].point, Path::new("/a b\\c"));
        let mut table = Table {
            mounts: read,
            share: None,
        };
        let excluded = |table: &Table| -> Vec<bool> {
            table.mounts.iter().map(|m| table.excludes(m)).collect()
        };
        assert_eq!(excluded(&table), [true, false]);
        table.share = Some((0, 40));
        assert_eq!(excluded(&table), [true, true]);
    }

    #[test]
    fn odd_escapes_are_left_as_they_are() {
        assert_eq!(unescaped(br"/a\04\777"), br"/a\04\777");
    }

    #[test]
    fn mounts_below_one_are_found_in_any_order() {
        let table = b"5 4 0:1 / /t/p/q rw - bpf x rw\n4 3 0:1 / /t/p rw - proc x rw\n\
            3 1 0:1 / /t rw - ext4 x rw\n6 1 0:1 / /u rw - sysfs x rw\n";
        let table = Table {
            mounts: mounts(table),
            share: None,
        };
        let below: Vec<u64> = table.below(3).iter().map(|mount| mount.id).collect();
        assert_eq!(below, [4, 5]);
    }
}
