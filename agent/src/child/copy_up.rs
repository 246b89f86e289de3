//! Fills a new file system with what it is about to cover (`tmpcopyup`).
//!
//! Directories, files and symbolic links, with owners and modes; other kinds of files are left out. The depth is bounded, because the
//! image decides it.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{
    AtFlags, Dir, FileType, Gid, Mode, OFlags, Stat, Uid, chownat, fchmod, fchown, mkdirat, openat,
    readlinkat, statat, symlinkat,
};
use rustix::io::Errno;

use super::mounts::reopen_directory;
use super::root::Root;

/// Deeper trees are an error: each level holds two descriptors.
const DEPTH_MAX: usize = 64;

/// Copies what is at `covered` in the root into the root of the detached mount `tree`. Nothing there: nothing to copy.
pub(super) fn copy(root: &Root, covered: &Path, tree: &OwnedFd) -> Result<(), Errno> {
    let from = reopen_directory(root.directory(covered)?)?;
    let to = reopen_directory(tree)?;
    let stat = rustix::fs::fstat(&from)?;
    copy_directory(&from, &to, 0)?;
    own(&to, &stat)
}

fn copy_directory(from: &OwnedFd, to: &OwnedFd, depth: usize) -> Result<(), Errno> {
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
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let below = openat(to, name, flags, Mode::empty())?;
                copy_directory(
                    &openat(from, name, flags, Mode::empty())?,
                    &below,
                    depth + 1,
                )?;
                own(&below, &stat)?;
            }
            FileType::RegularFile => copy_file(from, to, name, &stat)?,
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

fn copy_file(
    from: &OwnedFd,
    to: &OwnedFd,
    name: &std::ffi::CStr,
    stat: &Stat,
) -> Result<(), Errno> {
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
    own(&copy, stat)
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
