//! Files without a name (`O_TMPFILE`), which virtiofsd's library cannot make.
//!
//! Such a file is an inode of ours: the library finds inodes by name alone, and a name given for a
//! moment would take from the file what `O_TMPFILE` promises, that it can be linked into the tree
//! later. Its number is above [`FIRST`], as are those of its handles, so that none is the
//! library's, and every operation on one ends here.
//!
//! ```text
//!   TMPFILE in a directory ─► inode and handle ─┬─ FORGET and RELEASE ─► gone
//!                                               └─ LINK ─► a name, and one more inode
//! ```
//!
//! The inode of the name is the library's, and FUSE knows two inodes of one file then: of neither
//! may the guest remember anything.
//!
//! Each inode and each handle counts against a limit of its own; one beyond fails with `ENFILE`.

use std::collections::HashMap;
use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use rustix::fs::{
    AtFlags, FallocateFlags, Gid, Mode, OFlags, SeekFrom, Timespec, Timestamps, Uid, XattrFlags,
};
use virtiofsd::filesystem::{SetattrValid, SetxattrFlags};
use virtiofsd::fuse::{Attr, SetattrIn};
use virtiofsd::passthrough::credentials::{ScopedCaps, drop_effective_cap};
use virtiofsd::soft_idmap::{GuestGid, GuestUid, Id};

/// The first number of an inode or a handle. The library counts upwards from 1.
const FIRST: u64 = 1 << 63;
/// Inodes and handles of files without a name.
pub(super) const UNNAMED_MAX: u64 = 1024;
/// Extended attributes of a file and their names (`XATTR_SIZE_MAX`, `XATTR_LIST_MAX`), bytes.
const ATTRIBUTE_BYTES_MAX: usize = 64 * 1024;

/// Whether an inode or a handle is of a file without a name.
pub(super) fn is_unnamed(number: u64) -> bool {
    number >= FIRST
}

fn errno(number: i32) -> io::Error {
    io::Error::from_raw_os_error(number)
}

#[derive(Debug)]
struct Inode {
    file: Arc<File>,
    lookups: u64,
    /// Of the directory it was made in: what does not change while the file system is used.
    statistics: Box<libc::statvfs64>,
}

#[derive(Debug)]
struct Handle {
    inode: u64,
    file: Arc<File>,
}

/// All of a session.
#[derive(Debug)]
pub(super) struct Unnamed {
    inodes: HashMap<u64, Inode>,
    handles: HashMap<u64, Handle>,
    next: u64,
    most: u64,
}

impl Unnamed {
    /// A table of at most so many inodes and handles.
    pub(super) fn new(most: u64) -> Self {
        Self {
            inodes: HashMap::new(),
            handles: HashMap::new(),
            next: FIRST,
            most,
        }
    }

    pub(super) fn clear(&mut self) {
        self.inodes = HashMap::new();
        self.handles = HashMap::new();
    }

    /// Whether there is room for so many more.
    ///
    /// # Errors
    /// `ENFILE`.
    pub(super) fn check_room(&self, more: u64) -> io::Result<()> {
        let there = u64::try_from(self.inodes.len() + self.handles.len()).unwrap_or(u64::MAX);
        if there.saturating_add(more) > self.most {
            return Err(errno(libc::ENFILE));
        }
        Ok(())
    }

    /// Enters a new file; returns its inode and its handle.
    pub(super) fn enter(&mut self, file: File, statistics: libc::statvfs64) -> (u64, u64) {
        let file = Arc::new(file);
        let inode = self.number();
        let held = Inode {
            file: Arc::clone(&file),
            lookups: 1,
            statistics: Box::new(statistics),
        };
        self.inodes.insert(inode, held);
        (inode, self.enter_handle(inode, file))
    }

    fn enter_handle(&mut self, inode: u64, file: Arc<File>) -> u64 {
        let handle = self.number();
        self.handles.insert(handle, Handle { inode, file });
        handle
    }

    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    pub(super) fn forgotten(&mut self, inode: u64, count: u64) {
        if let Some(held) = self.inodes.get_mut(&inode) {
            held.lookups = held.lookups.saturating_sub(count);
            if held.lookups == 0 {
                self.inodes.remove(&inode);
            }
        }
    }

    fn inode(&self, inode: u64) -> io::Result<&Inode> {
        self.inodes.get(&inode).ok_or_else(|| errno(libc::EBADF))
    }

    /// The file of an inode.
    pub(super) fn file(&self, inode: u64) -> io::Result<Arc<File>> {
        Ok(Arc::clone(&self.inode(inode)?.file))
    }

    /// The file behind a handle of `inode`.
    pub(super) fn opened(&self, inode: u64, handle: u64) -> io::Result<Arc<File>> {
        self.handles
            .get(&handle)
            .filter(|found| found.inode == inode)
            .map(|found| Arc::clone(&found.file))
            .ok_or_else(|| errno(libc::EBADF))
    }

    /// Opens an inode again. `proc_self_fd` is this process's `/proc/self/fd`.
    pub(super) fn open(
        &mut self,
        proc_self_fd: &File,
        inode: u64,
        kill_priv: bool,
        flags: u32,
    ) -> io::Result<u64> {
        self.check_room(1)?;
        let file = self.file(inode)?;
        let _guard = without_set_id(kill_priv)?;
        let opened = rustix::fs::openat(
            proc_self_fd,
            file.as_raw_fd().to_string(),
            opening(flags).difference(OFlags::EXCL | OFlags::TMPFILE),
            Mode::empty(),
        )?;
        Ok(self.enter_handle(inode, Arc::new(File::from(opened))))
    }

    pub(super) fn release(&mut self, inode: u64, handle: u64) -> io::Result<()> {
        self.opened(inode, handle)?;
        self.handles.remove(&handle);
        Ok(())
    }

    pub(super) fn statistics(&self, inode: u64) -> io::Result<libc::statvfs64> {
        let held = self.inode(inode)?;
        let now = rustix::fs::fstatvfs(&held.file)?;
        let mut statistics = *held.statistics;
        statistics.f_blocks = now.f_blocks;
        statistics.f_bfree = now.f_bfree;
        statistics.f_bavail = now.f_bavail;
        statistics.f_files = now.f_files;
        statistics.f_ffree = now.f_ffree;
        statistics.f_favail = now.f_favail;
        Ok(statistics)
    }
}

/// The flags with which a guest's file is opened here: as it asks, but that appending is a write's
/// own.
pub(super) fn opening(flags: u32) -> OFlags {
    let asked = OFlags::from_bits_retain(flags);
    let left_out = OFlags::APPEND | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::DIRECTORY;
    // O_TMPFILE has the bit of O_DIRECTORY in it.
    let unnamed = asked & OFlags::TMPFILE;
    let unnamed = if unnamed == OFlags::TMPFILE {
        unnamed
    } else {
        OFlags::empty()
    };
    asked.difference(left_out | OFlags::TMPFILE) | unnamed | OFlags::CLOEXEC
}

/// While it is held, the host's kernel clears set-id bits at a change, as for a user without rights
/// over them.
pub(super) fn without_set_id(kill_priv: bool) -> io::Result<Option<ScopedCaps>> {
    if kill_priv {
        drop_effective_cap("FSETID")
    } else {
        Ok(None)
    }
}

pub(super) fn attributes(file: &File) -> io::Result<Attr> {
    let stat = rustix::fs::fstat(file)?;
    let narrow = |value: u64| u32::try_from(value).unwrap_or(u32::MAX);
    Ok(Attr {
        ino: stat.st_ino,
        size: stat.st_size.cast_unsigned(),
        blocks: stat.st_blocks.cast_unsigned(),
        atime: stat.st_atime.cast_unsigned(),
        mtime: stat.st_mtime.cast_unsigned(),
        ctime: stat.st_ctime.cast_unsigned(),
        atimensec: narrow(stat.st_atime_nsec),
        mtimensec: narrow(stat.st_mtime_nsec),
        ctimensec: narrow(stat.st_ctime_nsec),
        mode: stat.st_mode,
        nlink: narrow(stat.st_nlink),
        uid: GuestUid::from(stat.st_uid),
        gid: GuestGid::from(stat.st_gid),
        rdev: 0,
        blksize: narrow(stat.st_blksize.cast_unsigned()),
        flags: 0,
    })
}

/// Changes what `valid` names.
pub(super) fn change(file: &File, attr: &SetattrIn, valid: SetattrValid) -> io::Result<()> {
    if valid.contains(SetattrValid::MODE) {
        rustix::fs::fchmod(file, Mode::from_bits_truncate(attr.mode))?;
    }
    if valid.intersects(SetattrValid::UID | SetattrValid::GID) {
        let user = valid.contains(SetattrValid::UID);
        let group = valid.contains(SetattrValid::GID);
        rustix::fs::chownat(
            file,
            c"",
            user.then(|| Uid::from_raw(attr.uid.into_inner())),
            group.then(|| Gid::from_raw(attr.gid.into_inner())),
            AtFlags::EMPTY_PATH,
        )?;
    }
    if valid.contains(SetattrValid::SIZE) {
        let _guard = without_set_id(valid.contains(SetattrValid::KILL_SUIDGID))?;
        rustix::fs::ftruncate(file, attr.size)?;
    }
    if valid.intersects(SetattrValid::ATIME | SetattrValid::MTIME) {
        let time = |set, now, seconds: u64, nanoseconds: u32| Timespec {
            tv_sec: seconds.cast_signed(),
            tv_nsec: match (valid.contains(set), valid.contains(now)) {
                (false, _) => rustix::fs::UTIME_OMIT,
                (true, true) => rustix::fs::UTIME_NOW,
                (true, false) => nanoseconds.into(),
            },
        };
        let times = Timestamps {
            last_access: time(
                SetattrValid::ATIME,
                SetattrValid::ATIME_NOW,
                attr.atime,
                attr.atimensec,
            ),
            last_modification: time(
                SetattrValid::MTIME,
                SetattrValid::MTIME_NOW,
                attr.mtime,
                attr.mtimensec,
            ),
        };
        rustix::fs::futimens(file, &times)?;
    }
    Ok(())
}

pub(super) fn allocate(file: &File, mode: u32, offset: u64, length: u64) -> io::Result<()> {
    let mode = FallocateFlags::from_bits_retain(mode);
    Ok(rustix::fs::fallocate(file, mode, offset, length)?)
}

pub(super) fn seek(file: &File, offset: u64, whence: u32) -> io::Result<u64> {
    let signed = offset.cast_signed();
    let to = match i32::try_from(whence) {
        Ok(libc::SEEK_SET) => SeekFrom::Start(offset),
        Ok(libc::SEEK_CUR) => SeekFrom::Current(signed),
        Ok(libc::SEEK_END) => SeekFrom::End(signed),
        Ok(libc::SEEK_DATA) => SeekFrom::Data(offset),
        Ok(libc::SEEK_HOLE) => SeekFrom::Hole(offset),
        _ => return Err(errno(libc::EINVAL)),
    };
    Ok(rustix::fs::seek(file, to)?)
}

pub(super) fn set_attribute(
    file: &File,
    name: &CStr,
    value: &[u8],
    flags: u32,
    extra: SetxattrFlags,
) -> io::Result<()> {
    if extra.contains(SetxattrFlags::SETXATTR_ACL_KILL_SGID) && name == c"system.posix_acl_access" {
        let mode = Mode::from_bits_truncate(rustix::fs::fstat(file)?.st_mode);
        rustix::fs::fchmod(file, mode.difference(Mode::SGID))?;
    }
    let flags = XattrFlags::from_bits_retain(flags);
    Ok(rustix::fs::fsetxattr(file, name, value, flags)?)
}

/// The value of an attribute.
pub(super) fn attribute(file: &File, name: &CStr) -> io::Result<Vec<u8>> {
    let mut value = vec![0; ATTRIBUTE_BYTES_MAX];
    let length = rustix::fs::fgetxattr(file, name, value.as_mut_slice())?;
    value.truncate(length);
    Ok(value)
}

/// The names of all attributes, each ended by NUL.
pub(super) fn attribute_names(file: &File) -> io::Result<Vec<u8>> {
    let mut names = vec![0; ATTRIBUTE_BYTES_MAX];
    let length = rustix::fs::flistxattr(file, names.as_mut_slice())?;
    names.truncate(length);
    Ok(names)
}
