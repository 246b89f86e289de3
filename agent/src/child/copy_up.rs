//! Fills a new file system with what it is about to cover (`tmpcopyup`).
//!
//! Directories, files and symbolic links, with owners, modes, extended attributes and hard links among files; other kinds of files are left out. The
//! depth is bounded, because the image decides it.

use std::collections::HashMap;
use std::ffi::{CStr, CString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{
    AtFlags, Dir, FileType, Gid, Mode, OFlags, Stat, Uid, XattrFlags, chownat, fchmod, fchown,
    fgetxattr, flistxattr, fsetxattr, linkat, mkdirat, openat, readlinkat, statat, symlinkat,
};
use rustix::io::Errno;

use super::mounts::reopen_directory;
use super::root::Root;

/// Deeper trees are an error: each level holds two descriptors.
const DEPTH_MAX: usize = 64;
/// So many files of several names are remembered, a few MiB. The names of those that come later are files of their own.
const LINKED_MAX: usize = 1 << 16;
/// As long as the kernel lets a list of names, or a value, become.
const XATTR_MAX: usize = 1 << 16;

/// Where the new tree begins, and where in it the files are that have more names than one.
struct Copy<'t> {
    top: &'t OwnedFd,
    linked: HashMap<(u64, u64), CString>,
}

/// Copies what is at `covered` in the root into the root of the detached mount `tree`. Nothing there: nothing to copy.
pub(super) fn copy(root: &Root, covered: &Path, tree: &OwnedFd) -> Result<(), Errno> {
    let from = reopen_directory(root.directory(covered)?)?;
    let to = reopen_directory(tree)?;
    let stat = rustix::fs::fstat(&from)?;
    let mut copy = Copy {
        top: &to,
        linked: HashMap::new(),
    };
    copy.directory(&from, &to, c"", 0)?;
    finish(&from, &to, &stat)
}

impl Copy<'_> {
    /// `path` is that of `to` from the top, empty or with a slash behind it.
    fn directory(
        &mut self,
        from: &OwnedFd,
        to: &OwnedFd,
        path: &CStr,
        depth: usize,
    ) -> Result<(), Errno> {
        if depth == DEPTH_MAX {
            return Err(Errno::LOOP);
        }
        for entry in Dir::read_from(from)? {
            let entry = entry?;
            let name = entry.file_name();
            if name == c"." || name == c".." {
                continue;
            }
            let stat = statat(from, name, AtFlags::SYMLINK_NOFOLLOW)?;
            match FileType::from_raw_mode(stat.st_mode) {
                FileType::Directory => {
                    mkdirat(to, name, Mode::RWXU)?;
                    let flags =
                        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                    let source = openat(from, name, flags, Mode::empty())?;
                    let below = openat(to, name, flags, Mode::empty())?;
                    let path = joined(path, name, b"/")?;
                    self.directory(&source, &below, &path, depth + 1)?;
                    finish(&source, &below, &stat)?;
                }
                FileType::RegularFile if self.link(&stat, to, name)? => {}
                FileType::RegularFile => {
                    copy_file(from, to, name, &stat)?;
                    self.remember(&stat, path, name)?;
                }
                FileType::Symlink => {
                    symlinkat(readlinkat(from, name, Vec::new())?, to, name)?;
                    let (uid, gid) = owner(&stat);
                    chownat(to, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Gives a file that was copied already another name. Whether it was.
    fn link(&self, stat: &Stat, to: &OwnedFd, name: &CStr) -> Result<bool, Errno> {
        let Some(first) = self.linked.get(&(stat.st_dev, stat.st_ino)) else {
            return Ok(false);
        };
        linkat(self.top, first, to, name, AtFlags::empty())?;
        Ok(true)
    }

    fn remember(&mut self, stat: &Stat, path: &CStr, name: &CStr) -> Result<(), Errno> {
        if stat.st_nlink > 1 && self.linked.len() < LINKED_MAX {
            self.linked
                .insert((stat.st_dev, stat.st_ino), joined(path, name, b"")?);
        }
        Ok(())
    }
}

fn joined(path: &CStr, name: &CStr, end: &[u8]) -> Result<CString, Errno> {
    let parts = [path.to_bytes(), name.to_bytes(), end];
    CString::new(parts.concat()).map_err(|_| Errno::INVAL)
}

fn copy_file(from: &OwnedFd, to: &OwnedFd, name: &CStr, stat: &Stat) -> Result<(), Errno> {
    // Whoever shares the image may have put something else there meanwhile, whose opening would wait.
    let read = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let write = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let mut source = File::from(openat(from, name, read, Mode::empty())?);
    if FileType::from_raw_mode(rustix::fs::fstat(&source)?.st_mode) != FileType::RegularFile {
        return Err(Errno::AGAIN);
    }
    let mut copy = File::from(openat(to, name, write, Mode::RUSR | Mode::WUSR)?);
    io::copy(&mut source, &mut copy)
        .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
    finish(&source, &copy, stat)
}

/// Gives a copy what is not its contents. A change of owner takes set-id bits and file capabilities away, so that it comes first.
fn finish(from: impl AsFd, to: impl AsFd, stat: &Stat) -> Result<(), Errno> {
    own(&to, stat)?;
    let mut names = vec![0; XATTR_MAX];
    let length = match flistxattr(&from, &mut names) {
        Err(Errno::NOTSUP) => return Ok(()),
        listed => listed?,
    };
    let mut value = vec![0; XATTR_MAX];
    for name in names[..length].split_inclusive(|byte| *byte == 0) {
        let name = CStr::from_bytes_with_nul(name).map_err(|_| Errno::INVAL)?;
        let length = fgetxattr(&from, name, &mut value)?;
        match fsetxattr(&to, name, &value[..length], XattrFlags::empty()) {
            // A kind that the new file system does not have, or that this user namespace may not set.
            Ok(()) | Err(Errno::NOTSUP | Errno::PERM) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

/// Gives a copy the owner and then the mode of the original: a change of owner takes set-id bits away.
fn own(copy: impl AsFd, stat: &Stat) -> Result<(), Errno> {
    let (uid, gid) = owner(stat);
    fchown(&copy, Some(uid), Some(gid))?;
    fchmod(&copy, Mode::from_raw_mode(stat.st_mode & 0o7777))
}

fn owner(stat: &Stat) -> (Uid, Gid) {
    (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid))
}
