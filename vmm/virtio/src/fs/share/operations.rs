//! The operations of FUSE on a share.

use std::ffi::CStr;
use std::io;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::copy_file_range;
use virtiofsd::filesystem::{
    Context, Entry, Extensions, FileSystem, FsOptions, GetxattrReply, ListxattrReply, OpenOptions,
    SetattrValid, SetxattrFlags, ZeroCopyReader, ZeroCopyWriter,
};
use virtiofsd::fuse::{Attr, SetattrIn};
use virtiofsd::oslib::WritevFlags;

use super::{Share, lock};
use crate::fs::listing::{BATCH_BYTES, Batch, Entries, Next};
use crate::fs::top::Top;
use crate::fs::unnamed::{self, is_unnamed};
use crate::fs::{attributes, lent, names};

/// Between one SYNCFS and the next. Each writes out what all of a host's file system holds, also
/// for others, so a guest that asks in a loop waits; its other requests do with it, and an order to
/// stop.
const SYNCFS_INTERVAL: Duration = Duration::from_millis(250);

/// "No such name", to be remembered: inode 0.
fn absent(entry_timeout: Duration) -> Entry {
    Entry {
        inode: 0,
        generation: 0,
        attr: Attr::default(),
        attr_timeout: Duration::ZERO,
        entry_timeout,
    }
}

/// A list of attributes' names at its longest (`XATTR_LIST_MAX`).
const NAMES_BYTES_MAX: u32 = 64 * 1024;

/// A value as it is asked for.
enum Asked {
    Count(u32),
    Whole(Vec<u8>),
}

/// `value` for who has room for `size` bytes, or asks with 0 how many it has.
fn sized(value: Vec<u8>, size: u32) -> io::Result<Asked> {
    let length = u32::try_from(value.len()).unwrap_or(u32::MAX);
    match size {
        0 => Ok(Asked::Count(length)),
        _ if length > size => Err(io::Error::from_raw_os_error(libc::ERANGE)),
        _ => Ok(Asked::Whole(value)),
    }
}

fn widened(size: u32) -> usize {
    usize::try_from(size).unwrap_or(usize::MAX)
}

/// Passes an offset a file can have. The library panics at any other.
fn check_offset(offset: u64) -> io::Result<()> {
    if i64::try_from(offset).is_err() {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    Ok(())
}

impl FileSystem for Share {
    type Inode = u64;
    type Handle = u64;
    type DirIter = Entries;

    fn init(&self, capable: FsOptions) -> io::Result<FsOptions> {
        if !capable.contains(FsOptions::SUBMOUNTS) {
            return Err(io::Error::from_raw_os_error(libc::EPROTO));
        }
        self.end_locks();
        lock(&self.nodes).clear();
        self.listings().clear();
        self.unnamed().clear();
        let top = Top::open(&self.root)?;
        *self.top.lock().unwrap_or_else(PoisonError::into_inner) = Some(top);
        // A symbolic link never changes: a new target is a new inode.
        let own = FsOptions::CACHE_SYMLINKS | FsOptions::POSIX_LOCKS | FsOptions::FLOCK_LOCKS;
        Ok(self.files.init(capable)? | own)
    }

    fn destroy(&self) {
        self.end_locks();
        lock(&self.nodes).clear();
        self.listings().clear();
        self.unnamed().clear();
        self.files.destroy();
    }

    fn lookup(&self, ctx: Context, parent: u64, name: &CStr) -> io::Result<Entry> {
        lock(&self.nodes).check_held(parent)?;
        match self.files.lookup(ctx, parent, names::check(name)?) {
            Ok(entry) => Ok(self.admit(parent, name, entry)),
            // Gone since it was read, or one too many: it is told of without attributes.
            Err(_) if self.listing.load(Ordering::Relaxed) => Ok(absent(Duration::ZERO)),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => lock(&self.nodes)
                .absent_timeout(parent)
                .map(absent)
                .ok_or(error),
            Err(error) => Err(error),
        }
    }

    fn forget(&self, ctx: Context, inode: u64, count: u64) {
        lock(&self.nodes).forgotten(inode, count);
        if is_unnamed(inode) {
            self.unnamed().forgotten(inode, count);
        } else {
            self.files.forget(ctx, inode, count);
        }
    }

    fn batch_forget(&self, ctx: Context, mut requests: Vec<(u64, u64)>) {
        let mut nodes = lock(&self.nodes);
        for (inode, count) in &requests {
            nodes.forgotten(*inode, *count);
        }
        drop(nodes);
        for (inode, count) in requests.extract_if(.., |request| is_unnamed(request.0)) {
            self.unnamed().forgotten(inode, count);
        }
        self.files.batch_forget(ctx, requests);
    }

    fn getattr(
        &self,
        ctx: Context,
        inode: u64,
        handle: Option<u64>,
    ) -> io::Result<(Attr, Duration)> {
        if is_unnamed(inode) {
            let file = self.unnamed().file(inode)?;
            return Ok(self.timed(inode, unnamed::attributes(&file)?));
        }
        let (attr, _) = self.files.getattr(ctx, inode, handle)?;
        Ok(self.timed(inode, attr))
    }

    fn setattr(
        &self,
        ctx: Context,
        inode: u64,
        attr: SetattrIn,
        handle: Option<u64>,
        valid: SetattrValid,
    ) -> io::Result<(Attr, Duration)> {
        self.check_change(inode)?;
        if is_unnamed(inode) {
            let file = self.unnamed().file(inode)?;
            unnamed::change(&file, &attr, valid)?;
            return Ok(self.timed(inode, unnamed::attributes(&file)?));
        }
        let (attr, _) = self.files.setattr(ctx, inode, attr, handle, valid)?;
        Ok(self.timed(inode, attr))
    }

    fn readlink(&self, ctx: Context, inode: u64) -> io::Result<Vec<u8>> {
        self.files.readlink(ctx, inode)
    }

    fn symlink(
        &self,
        ctx: Context,
        target: &CStr,
        parent: u64,
        name: &CStr,
        extensions: Extensions,
    ) -> io::Result<Entry> {
        self.check_change(parent)?;
        let name = names::check(name)?;
        let entry = self.files.symlink(ctx, target, parent, name, extensions)?;
        Ok(self.admit(parent, name, entry))
    }

    fn mknod(
        &self,
        ctx: Context,
        parent: u64,
        name: &CStr,
        mode: u32,
        rdev: u32,
        umask: u32,
        extensions: Extensions,
    ) -> io::Result<Entry> {
        self.check_change(parent)?;
        let name = names::check(name)?;
        let entry = self
            .files
            .mknod(ctx, parent, name, mode, rdev, umask, extensions)?;
        Ok(self.admit(parent, name, entry))
    }

    fn mkdir(
        &self,
        ctx: Context,
        parent: u64,
        name: &CStr,
        mode: u32,
        umask: u32,
        extensions: Extensions,
    ) -> io::Result<Entry> {
        self.check_change(parent)?;
        let name = names::check(name)?;
        let entry = self
            .files
            .mkdir(ctx, parent, name, mode, umask, extensions)?;
        Ok(self.admit(parent, name, entry))
    }

    fn unlink(&self, ctx: Context, parent: u64, name: &CStr) -> io::Result<()> {
        self.check_change(parent)?;
        self.files.unlink(ctx, parent, names::check(name)?)
    }

    fn rmdir(&self, ctx: Context, parent: u64, name: &CStr) -> io::Result<()> {
        self.check_change(parent)?;
        self.files.rmdir(ctx, parent, names::check(name)?)
    }

    fn rename(
        &self,
        ctx: Context,
        old_parent: u64,
        old_name: &CStr,
        new_parent: u64,
        new_name: &CStr,
        flags: u32,
    ) -> io::Result<()> {
        self.check_change(old_parent)?;
        self.check_change(new_parent)?;
        let (old_name, new_name) = (names::check(old_name)?, names::check(new_name)?);
        self.files
            .rename(ctx, old_parent, old_name, new_parent, new_name, flags)
    }

    fn link(&self, ctx: Context, inode: u64, parent: u64, name: &CStr) -> io::Result<Entry> {
        self.check_change(inode)?;
        self.check_change(parent)?;
        let name = names::check(name)?;
        if is_unnamed(inode) {
            return self.name_unnamed(ctx, inode, parent, name);
        }
        let entry = self.files.link(ctx, inode, parent, name)?;
        Ok(self.admit(parent, name, entry))
    }

    fn open(
        &self,
        ctx: Context,
        inode: u64,
        kill_priv: bool,
        flags: u32,
    ) -> io::Result<(Option<u64>, OpenOptions)> {
        self.check_open(inode, flags)?;
        if is_unnamed(inode) {
            let handle = self
                .unnamed()
                .open(&self.proc_self_fd, inode, kill_priv, flags)?;
            return Ok((Some(handle), lock(&self.nodes).open_options(inode, false)));
        }
        let (handle, options) = self.files.open(ctx, inode, kill_priv, flags)?;
        Ok((
            handle,
            options | lock(&self.nodes).open_options(inode, false),
        ))
    }

    fn create(
        &self,
        ctx: Context,
        parent: u64,
        name: &CStr,
        mode: u32,
        kill_priv: bool,
        flags: u32,
        umask: u32,
        extensions: Extensions,
    ) -> io::Result<(Entry, Option<u64>, OpenOptions)> {
        self.check_change(parent)?;
        let name = names::check(name)?;
        let (entry, handle, options) = self
            .files
            .create(ctx, parent, name, mode, kill_priv, flags, umask, extensions)?;
        let entry = self.admit(parent, name, entry);
        let options = options | lock(&self.nodes).open_options(entry.inode, false);
        Ok((entry, handle, options))
    }

    fn read<W: ZeroCopyWriter>(
        &self,
        ctx: Context,
        inode: u64,
        handle: u64,
        mut w: W,
        size: u32,
        offset: u64,
        lock_owner: Option<u64>,
        flags: u32,
    ) -> io::Result<usize> {
        check_offset(offset)?;
        if is_unnamed(inode) {
            let file = self.unnamed().opened(inode, handle)?;
            return w.read_from_file_at(&file, widened(size), offset, None);
        }
        self.files
            .read(ctx, inode, handle, w, size, offset, lock_owner, flags)
    }

    fn write<R: ZeroCopyReader>(
        &self,
        ctx: Context,
        inode: u64,
        handle: u64,
        mut r: R,
        size: u32,
        offset: u64,
        lock_owner: Option<u64>,
        delayed_write: bool,
        kill_priv: bool,
        flags: u32,
    ) -> io::Result<usize> {
        self.check_change(inode)?;
        check_offset(offset)?;
        if is_unnamed(inode) {
            let file = self.unnamed().opened(inode, handle)?;
            let appends = !delayed_write && flags & libc::O_APPEND.cast_unsigned() != 0;
            let how = appends.then_some(WritevFlags::RWF_APPEND);
            let _set_id = unnamed::without_set_id(kill_priv)?;
            return r.write_to_file_at(&file, widened(size), offset, how);
        }
        self.files.write(
            ctx,
            inode,
            handle,
            r,
            size,
            offset,
            lock_owner,
            delayed_write,
            kill_priv,
            flags,
        )
    }

    fn flush(&self, ctx: Context, inode: u64, handle: u64, lock_owner: u64) -> io::Result<()> {
        self.end_locks_of(ctx, inode, lock_owner);
        if is_unnamed(inode) {
            return self.unnamed().opened(inode, handle).map(drop);
        }
        self.files.flush(ctx, inode, handle, lock_owner)
    }

    fn fsync(&self, ctx: Context, inode: u64, datasync: bool, handle: u64) -> io::Result<()> {
        if is_unnamed(inode) {
            let file = self.unnamed().opened(inode, handle)?;
            return if datasync {
                file.sync_data()
            } else {
                file.sync_all()
            };
        }
        self.files.fsync(ctx, inode, datasync, handle)
    }

    fn fallocate(
        &self,
        ctx: Context,
        inode: u64,
        handle: u64,
        mode: u32,
        offset: u64,
        length: u64,
    ) -> io::Result<()> {
        self.check_change(inode)?;
        if is_unnamed(inode) {
            let file = self.unnamed().opened(inode, handle)?;
            return unnamed::allocate(&file, mode, offset, length);
        }
        self.files
            .fallocate(ctx, inode, handle, mode, offset, length)
    }

    fn release(
        &self,
        ctx: Context,
        inode: u64,
        flags: u32,
        handle: u64,
        flush: bool,
        flock_release: bool,
        lock_owner: Option<u64>,
    ) -> io::Result<()> {
        self.end_locks_by(ctx, inode, handle);
        if is_unnamed(inode) {
            if flock_release {
                // Its first handle and the inode are one description, which lives on.
                let _ = self.with_open(ctx, inode, handle, |file| {
                    Ok(rustix::fs::flock(file, rustix::fs::FlockOperation::Unlock)?)
                });
            }
            return self.unnamed().release(inode, handle);
        }
        self.files
            .release(ctx, inode, flags, handle, flush, flock_release, lock_owner)
    }

    fn statfs(&self, ctx: Context, inode: u64) -> io::Result<libc::statvfs64> {
        if is_unnamed(inode) {
            return self.unnamed().statistics(inode);
        }
        self.files.statfs(ctx, inode)
    }

    fn setxattr(
        &self,
        ctx: Context,
        inode: u64,
        name: &CStr,
        value: &[u8],
        flags: u32,
        extra_flags: SetxattrFlags,
    ) -> io::Result<()> {
        self.check_change(inode)?;
        let name = attributes::to_host(name)?;
        if is_unnamed(inode) {
            let file = self.unnamed().file(inode)?;
            return unnamed::set_attribute(&file, &name, value, flags, extra_flags);
        }
        self.files
            .setxattr(ctx, inode, &name, value, flags, extra_flags)
    }

    fn getxattr(
        &self,
        ctx: Context,
        inode: u64,
        name: &CStr,
        size: u32,
    ) -> io::Result<GetxattrReply> {
        let name =
            attributes::to_host(name).map_err(|_| io::Error::from_raw_os_error(libc::ENODATA))?;
        if is_unnamed(inode) {
            let file = self.unnamed().file(inode)?;
            let value = unnamed::attribute(&file, &name)?;
            return Ok(match sized(value, size)? {
                Asked::Count(count) => GetxattrReply::Count(count),
                Asked::Whole(value) => GetxattrReply::Value(value),
            });
        }
        self.files.getxattr(ctx, inode, &name, size)
    }

    fn listxattr(&self, ctx: Context, inode: u64, size: u32) -> io::Result<ListxattrReply> {
        let names = if is_unnamed(inode) {
            let file = self.unnamed().file(inode)?;
            unnamed::attribute_names(&file)?
        } else {
            // What the guest sees of them is shorter, so the host is asked for all.
            match self.files.listxattr(ctx, inode, NAMES_BYTES_MAX)? {
                ListxattrReply::Names(names) => names,
                ListxattrReply::Count(_) => Vec::new(),
            }
        };
        Ok(match sized(attributes::to_guest(&names), size)? {
            Asked::Count(count) => ListxattrReply::Count(count),
            Asked::Whole(names) => ListxattrReply::Names(names),
        })
    }

    fn removexattr(&self, ctx: Context, inode: u64, name: &CStr) -> io::Result<()> {
        self.check_change(inode)?;
        let name = attributes::to_host(name)?;
        if is_unnamed(inode) {
            let file = self.unnamed().file(inode)?;
            return Ok(rustix::fs::fremovexattr(&*file, name.as_ref())?);
        }
        self.files.removexattr(ctx, inode, &name)
    }

    fn opendir(
        &self,
        ctx: Context,
        inode: u64,
        flags: u32,
    ) -> io::Result<(Option<u64>, OpenOptions)> {
        self.check_open(inode, flags)?;
        let (handle, options) = self.files.opendir(ctx, inode, flags)?;
        Ok((
            handle,
            options | lock(&self.nodes).open_options(inode, true),
        ))
    }

    fn readdir(
        &self,
        ctx: Context,
        inode: u64,
        handle: u64,
        size: u32,
        offset: u64,
    ) -> io::Result<Self::DirIter> {
        if size == 0 {
            return Ok(Entries::default());
        }
        let next = self.listings().next(inode, handle, offset)?;
        let batch = match next {
            Next::Kept(entries) => return Ok(entries),
            Next::InOrder => lent::file(&self.files, ctx, inode, handle, Batch::read)?,
            Next::Positioned => {
                let read = self
                    .files
                    .readdir(ctx, inode, handle, BATCH_BYTES, offset)?;
                Batch::copied(read)
            }
        };
        Ok(self.listings().keep(inode, handle, offset, batch))
    }

    fn fsyncdir(&self, ctx: Context, inode: u64, datasync: bool, handle: u64) -> io::Result<()> {
        self.files.fsyncdir(ctx, inode, datasync, handle)
    }

    fn releasedir(&self, ctx: Context, inode: u64, flags: u32, handle: u64) -> io::Result<()> {
        self.files.releasedir(ctx, inode, flags, handle)?;
        self.listings().closed(handle);
        Ok(())
    }

    fn access(&self, ctx: Context, inode: u64, mask: u32) -> io::Result<()> {
        if is_unnamed(inode) {
            // It was opened by who asks; Linux checks by its attributes.
            return self.unnamed().file(inode).map(drop);
        }
        self.files.access(ctx, inode, mask)
    }

    fn lseek(
        &self,
        ctx: Context,
        inode: u64,
        handle: u64,
        offset: u64,
        whence: u32,
    ) -> io::Result<u64> {
        if is_unnamed(inode) {
            let file = self.unnamed().opened(inode, handle)?;
            return unnamed::seek(&file, offset, whence);
        }
        self.files.lseek(ctx, inode, handle, offset, whence)
    }

    fn copyfilerange(
        &self,
        ctx: Context,
        inode_in: u64,
        handle_in: u64,
        offset_in: u64,
        inode_out: u64,
        handle_out: u64,
        offset_out: u64,
        len: u64,
        flags: u64,
    ) -> io::Result<usize> {
        self.check_change(inode_out)?;
        if is_unnamed(inode_in) || is_unnamed(inode_out) {
            check_offset(offset_in)?;
            check_offset(offset_out)?;
            let (mut from, mut to) = (offset_in, offset_out);
            return self.with_open(ctx, inode_in, handle_in, |source| {
                self.with_open(ctx, inode_out, handle_out, |target| {
                    let length = usize::try_from(len).unwrap_or(usize::MAX);
                    let (from, to) = (Some(&mut from), Some(&mut to));
                    Ok(copy_file_range(source, from, target, to, length)?)
                })
            });
        }
        self.files.copyfilerange(
            ctx, inode_in, handle_in, offset_in, inode_out, handle_out, offset_out, len, flags,
        )
    }

    #[expect(clippy::disallowed_methods, reason = "time is what is waited for")]
    fn syncfs(&self, ctx: Context, inode: u64) -> io::Result<()> {
        if self.check_change(inode).is_err() {
            // Nothing of the guest's is there to be written out.
            return Ok(());
        }
        if is_unnamed(inode) {
            return self.unnamed().file(inode)?.sync_all();
        }
        let mut last = self.synced.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(last) = *last {
            thread::sleep(SYNCFS_INTERVAL.saturating_sub(last.elapsed()));
        }
        let synced = self.files.syncfs(ctx, inode);
        *last = Some(Instant::now());
        synced
    }
}
