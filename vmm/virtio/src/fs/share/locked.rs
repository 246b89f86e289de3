//! Locks on files of volumes, taken on the host without waiting.

use std::io;
use std::sync::{MutexGuard, PoisonError};

use rustix::fs::{FlockOperation, flock};
use virtiofsd::filesystem::{Context, FileSystem as _};
use virtiofsd::fuse::InHeader;

use super::{Share, lock};
use crate::fs::locking::Wanted;
use crate::fs::locks::{Asker, Kind, Locks, Range};
use crate::fs::record;
use crate::fs::unnamed::is_unnamed;

impl Share {
    pub(super) fn locks(&self) -> MutexGuard<'_, Locks> {
        self.locks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Locks or unlocks as `wanted`, at once or not at all.
    ///
    /// # Errors
    /// `ENOSYS` where the guest's kernel shall do so itself, `EAGAIN` where somebody else has a
    /// lock, `ENOLCK` beyond a bound.
    pub(in crate::fs) fn set_lock(
        &self,
        ctx: Context,
        inode: u64,
        wanted: Wanted,
    ) -> io::Result<()> {
        let Wanted {
            asker, range, kind, ..
        } = wanted;
        if wanted.whole_file {
            let operation = match kind {
                Some(Kind::Shared) => FlockOperation::NonBlockingLockShared,
                Some(Kind::Exclusive) => FlockOperation::NonBlockingLockExclusive,
                None => FlockOperation::Unlock,
            };
            return self.with_open(ctx, inode, asker.handle, |file| Ok(flock(file, operation)?));
        }
        let mut locks = self.locks();
        let description = match (locks.description(inode, asker.owner), kind) {
            (Some(description), _) => description,
            (None, None) => return Ok(()),
            (None, Some(kind)) => {
                self.begin_to_lock(ctx, inode, asker, (range, kind), &mut locks)?
            }
        };
        let done = locks.change(inode, asker, (range, kind), || {
            self.with_open(ctx, inode, description, |file| {
                record::set(file, range, kind)
            })
        });
        let idle = locks.without_locks(inode, asker.owner);
        drop(locks);
        self.close_again(ctx, inode, idle.into_iter());
        done
    }

    /// The lock that keeps one of `kind` out, and the guest's process that has it: 0 if it is no
    /// process of this guest's.
    ///
    /// # Errors
    /// `ENOSYS` where the guest's kernel knows itself.
    pub(in crate::fs) fn find_lock(
        &self,
        ctx: Context,
        inode: u64,
        wanted: Wanted,
        kind: Kind,
    ) -> io::Result<Option<(Range, Kind, u32)>> {
        let locks = self.locks();
        let owner = wanted.asker.owner;
        // A handle of the guest's own has no record locks.
        let asking = locks
            .description(inode, owner)
            .unwrap_or(wanted.asker.handle);
        let found = self.with_open(ctx, inode, asking, |file| {
            record::find(file, wanted.range, kind)
        })?;
        Ok(found.map(|(range, of)| {
            let pid = locks.whose(inode, owner, range, of);
            (range, of, pid.unwrap_or(0))
        }))
    }

    /// The process `owner` has closed a descriptor of `inode`, and so lost its locks there.
    pub(super) fn end_locks_of(&self, ctx: Context, inode: u64, owner: u64) {
        let ended = self.locks().closed_by(inode, owner);
        self.close_again(ctx, inode, ended.into_iter());
    }

    /// Nobody has `handle` any more.
    pub(super) fn end_locks_by(&self, ctx: Context, inode: u64, handle: u64) {
        let ended = self.locks().released(inode, handle);
        self.close_again(ctx, inode, ended.into_iter());
    }

    /// The session ends.
    pub(super) fn end_locks(&self) {
        let ctx = Context::from(InHeader::default());
        let ended = self.locks().clear();
        for (inode, description) in ended {
            self.close_again(ctx, inode, std::iter::once(description));
        }
    }

    /// Files that nobody but this guest has are its kernel's to lock.
    ///
    /// # Errors
    /// `ENOSYS`.
    pub(in crate::fs) fn check_locks_are_shared(&self, inode: u64) -> io::Result<()> {
        if lock(&self.nodes).is_of_volume(inode) {
            return Ok(());
        }
        Err(io::Error::from_raw_os_error(libc::ENOSYS))
    }

    /// Gives an owner a description for its locks in `inode`, which it has opened. Who waits for a
    /// lock asks again and again: the host, which sees files being opened, sees nothing of that.
    fn begin_to_lock(
        &self,
        ctx: Context,
        inode: u64,
        asker: Asker,
        (range, kind): (Range, Kind),
        locks: &mut Locks,
    ) -> io::Result<u64> {
        let taken = self.with_open(ctx, inode, asker.handle, |file| {
            record::find(file, range, kind)
        })?;
        if taken.is_some() {
            return Err(io::Error::from_raw_os_error(libc::EAGAIN));
        }
        locks.check_room()?;
        let description = self.open_again(ctx, inode)?;
        locks.enter(inode, asker, description);
        Ok(description)
    }

    /// Opens for locks of both kinds what can be opened so, else for shared ones: a file that is
    /// run, or on a file system that is read-only, is written to by nobody.
    fn open_again(&self, ctx: Context, inode: u64) -> io::Result<u64> {
        match self.open_as(ctx, inode, libc::O_RDWR) {
            Err(error) if is_for_readers(&error) => self.open_as(ctx, inode, libc::O_RDONLY),
            opened => opened,
        }
    }

    fn open_as(&self, ctx: Context, inode: u64, access: libc::c_int) -> io::Result<u64> {
        // A lease of the host's on the file is not waited for either.
        let flags = (access | libc::O_NONBLOCK).cast_unsigned();
        if is_unnamed(inode) {
            let mut unnamed = self.unnamed();
            return unnamed.open(&self.proc_self_fd, inode, false, flags);
        }
        let (handle, _) = self.files.open(ctx, inode, false, flags)?;
        handle.ok_or_else(|| io::Error::from_raw_os_error(libc::EBADF))
    }

    /// Closes descriptions and ends the locks they have, which closing alone does not on every file
    /// system. One that is not there is closed.
    fn close_again(&self, ctx: Context, inode: u64, descriptions: impl Iterator<Item = u64>) {
        let all = Range {
            start: 0,
            end: record::LAST,
        };
        for handle in descriptions {
            let _ = self.with_open(ctx, inode, handle, |file| record::set(file, all, None));
            let _ = if is_unnamed(inode) {
                self.unnamed().release(inode, handle)
            } else {
                self.files
                    .release(ctx, inode, 0, handle, false, false, None)
            };
        }
    }
}

/// Whether a file could not be opened for writing and perhaps for reading.
fn is_for_readers(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EROFS | libc::ETXTBSY | libc::EACCES | libc::EPERM)
    )
}
