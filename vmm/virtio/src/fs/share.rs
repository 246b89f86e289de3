//! The shared directory as the FUSE server sees it: virtiofsd's passthrough of host files, with names checked and cache times set.
//!
//! Every operation forwards to `PassthroughFs`. Added here, and only here:
//! - a name is checked ([`super::names`]) by each operation that takes one;
//! - what an operation tells the guest of is entered in the table of inodes, and carries that table's times ([`super::policy`]);
//! - an offset no file has, which the library would panic at, is refused;
//! - a guest that cannot tell the mounts below the share apart is refused at INIT: two files with one inode number would be one to it;
//! - a rootfs is not announced as a mount, though it is one: Linux gives announced mounts neither ACLs nor the mark (`SB_NOSEC`) without which
//!   every write is preceded by a question for `security.capability`. Volumes are, so their inode numbers cannot be taken for the rootfs's.
//!
//! An inode is an `O_PATH` descriptor of this process, and so is an open file. File handles instead of descriptors are not used: overlayfs, the
//! usual rootfs, decodes none, and `open_by_handle_at` wants `CAP_DAC_READ_SEARCH`, with which a VMM taken over by its guest could open any
//! file of a file system, jail or not. Both kinds count against one limit, and an operation beyond it fails with `ENFILE`.

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use virtiofsd::filesystem::{
    Context, Entry, Extensions, FileSystem, FsOptions, GetxattrReply, ListxattrReply, OpenOptions,
    SetattrValid, SetxattrFlags, ZeroCopyReader, ZeroCopyWriter,
};
use virtiofsd::fuse::{ATTR_SUBMOUNT, Attr, SetattrIn};
use virtiofsd::passthrough::{
    CachePolicy, Config, InodeFileHandlesMode, NegotiationMode, PassthroughFs,
};

use super::names;
use super::policy::Nodes;

/// What a guest may make the host hold for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Limits {
    /// Inodes and open files together, one descriptor each.
    pub(super) descriptors: u64,
    /// Inodes beyond which the guest is asked to give back each further one after use.
    pub(super) kept_inodes: usize,
}

/// A directory of the host with the guest's view of it.
pub(super) struct Share {
    files: PassthroughFs,
    nodes: Arc<Mutex<Nodes>>,
}

/// Locks a table of inodes, which has no state between two statements that a panic could tear apart.
pub(super) fn lock(nodes: &Mutex<Nodes>) -> MutexGuard<'_, Nodes> {
    nodes.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Share {
    /// Shares `root`, a path as the calling thread sees it. `proc_self_fd` is this process's `/proc/self/fd`.
    pub(super) fn new(root: &str, proc_self_fd: File, limits: Limits) -> io::Result<Self> {
        let files = PassthroughFs::new(Config {
            root_dir: root.to_owned(),
            proc_sfd_rawfd: Some(proc_self_fd),
            guest_fd_limit: limits.descriptors,
            inode_file_handles: InodeFileHandlesMode::Never,
            announce_submounts: true,
            readdirplus: true,
            xattr: true,
            posix_acl: NegotiationMode::Auto,
            // The guest's kernel asks for set-id bits to be cleared in the write itself, and not for `security.capability` before each.
            killpriv_v2: true,
            security_label: NegotiationMode::Never,
            // O_DIRECT, also for a file that is mapped.
            allow_direct_io: true,
            allow_mmap: true,
            // The guest's kernel has checked who may use it.
            clean_noatime: false,
            // One session has rootfs and volumes in it, and a session that writes back believes its own sizes and times, even of a
            // file that the host writes.
            writeback: false,
            // Times and open flags are set below, per inode.
            cache_policy: CachePolicy::Auto,
            entry_timeout: Duration::ZERO,
            attr_timeout: Duration::ZERO,
            ..Config::default()
        })?;
        Ok(Self {
            files,
            nodes: Arc::new(Mutex::new(Nodes::new(limits.kept_inodes))),
        })
    }

    /// The table of the inodes the guest holds.
    pub(super) fn nodes(&self) -> Arc<Mutex<Nodes>> {
        Arc::clone(&self.nodes)
    }

    fn admit(&self, parent: u64, name: &CStr, mut entry: Entry) -> Entry {
        let mut nodes = lock(&self.nodes);
        entry.entry_timeout = nodes.found(parent, name, entry.inode);
        entry.attr_timeout = nodes.timeout(entry.inode);
        if nodes.is_rootfs_mount(parent, entry.inode) {
            entry.attr.flags &= !ATTR_SUBMOUNT;
        }
        entry
    }

    fn timed(&self, inode: u64, attr: Attr) -> (Attr, Duration) {
        (attr, lock(&self.nodes).timeout(inode))
    }
}

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
    type DirIter = <PassthroughFs as FileSystem>::DirIter;

    fn init(&self, capable: FsOptions) -> io::Result<FsOptions> {
        if !capable.contains(FsOptions::SUBMOUNTS) {
            return Err(io::Error::from_raw_os_error(libc::EPROTO));
        }
        lock(&self.nodes).clear();
        // A symbolic link never changes: a new target is a new inode.
        Ok(self.files.init(capable)? | FsOptions::CACHE_SYMLINKS)
    }

    fn destroy(&self) {
        lock(&self.nodes).clear();
        self.files.destroy();
    }

    fn lookup(&self, ctx: Context, parent: u64, name: &CStr) -> io::Result<Entry> {
        match self.files.lookup(ctx, parent, names::check(name)?) {
            Ok(entry) => Ok(self.admit(parent, name, entry)),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => lock(&self.nodes)
                .absent_timeout(parent)
                .map(absent)
                .ok_or(error),
            Err(error) => Err(error),
        }
    }

    fn forget(&self, ctx: Context, inode: u64, count: u64) {
        lock(&self.nodes).forgotten(inode, count);
        self.files.forget(ctx, inode, count);
    }

    fn batch_forget(&self, ctx: Context, requests: Vec<(u64, u64)>) {
        let mut nodes = lock(&self.nodes);
        for (inode, count) in &requests {
            nodes.forgotten(*inode, *count);
        }
        drop(nodes);
        self.files.batch_forget(ctx, requests);
    }

    fn getattr(
        &self,
        ctx: Context,
        inode: u64,
        handle: Option<u64>,
    ) -> io::Result<(Attr, Duration)> {
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
        let name = names::check(name)?;
        let entry = self
            .files
            .mkdir(ctx, parent, name, mode, umask, extensions)?;
        Ok(self.admit(parent, name, entry))
    }

    fn unlink(&self, ctx: Context, parent: u64, name: &CStr) -> io::Result<()> {
        self.files.unlink(ctx, parent, names::check(name)?)
    }

    fn rmdir(&self, ctx: Context, parent: u64, name: &CStr) -> io::Result<()> {
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
        let (old_name, new_name) = (names::check(old_name)?, names::check(new_name)?);
        self.files
            .rename(ctx, old_parent, old_name, new_parent, new_name, flags)
    }

    fn link(&self, ctx: Context, inode: u64, parent: u64, name: &CStr) -> io::Result<Entry> {
        let name = names::check(name)?;
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
        w: W,
        size: u32,
        offset: u64,
        lock_owner: Option<u64>,
        flags: u32,
    ) -> io::Result<usize> {
        check_offset(offset)?;
        self.files
            .read(ctx, inode, handle, w, size, offset, lock_owner, flags)
    }

    fn write<R: ZeroCopyReader>(
        &self,
        ctx: Context,
        inode: u64,
        handle: u64,
        r: R,
        size: u32,
        offset: u64,
        lock_owner: Option<u64>,
        delayed_write: bool,
        kill_priv: bool,
        flags: u32,
    ) -> io::Result<usize> {
        check_offset(offset)?;
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
        self.files.flush(ctx, inode, handle, lock_owner)
    }

    fn fsync(&self, ctx: Context, inode: u64, datasync: bool, handle: u64) -> io::Result<()> {
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
        self.files
            .release(ctx, inode, flags, handle, flush, flock_release, lock_owner)
    }

    fn statfs(&self, ctx: Context, inode: u64) -> io::Result<libc::statvfs64> {
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
        self.files
            .setxattr(ctx, inode, name, value, flags, extra_flags)
    }

    fn getxattr(
        &self,
        ctx: Context,
        inode: u64,
        name: &CStr,
        size: u32,
    ) -> io::Result<GetxattrReply> {
        self.files.getxattr(ctx, inode, name, size)
    }

    fn listxattr(&self, ctx: Context, inode: u64, size: u32) -> io::Result<ListxattrReply> {
        self.files.listxattr(ctx, inode, size)
    }

    fn removexattr(&self, ctx: Context, inode: u64, name: &CStr) -> io::Result<()> {
        self.files.removexattr(ctx, inode, name)
    }

    fn opendir(
        &self,
        ctx: Context,
        inode: u64,
        flags: u32,
    ) -> io::Result<(Option<u64>, OpenOptions)> {
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
        self.files.readdir(ctx, inode, handle, size, offset)
    }

    fn fsyncdir(&self, ctx: Context, inode: u64, datasync: bool, handle: u64) -> io::Result<()> {
        self.files.fsyncdir(ctx, inode, datasync, handle)
    }

    fn releasedir(&self, ctx: Context, inode: u64, flags: u32, handle: u64) -> io::Result<()> {
        self.files.releasedir(ctx, inode, flags, handle)
    }

    fn access(&self, ctx: Context, inode: u64, mask: u32) -> io::Result<()> {
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
        self.files.copyfilerange(
            ctx, inode_in, handle_in, offset_in, inode_out, handle_out, offset_out, len, flags,
        )
    }

    fn syncfs(&self, ctx: Context, inode: u64) -> io::Result<()> {
        self.files.syncfs(ctx, inode)
    }
}
