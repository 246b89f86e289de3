//! The shared directory as the FUSE server sees it: virtiofsd's passthrough of host files, with names checked and cache times set.
//!
//! Every operation forwards to `PassthroughFs`. Added here, and only here:
//! - a name is checked ([`super::names`]) by each operation that takes one;
//! - the host's file systems are not written out without end;
//! - nothing above the mounts of the containers is changed: `EROFS` ([`super::policy`]);
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
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, StatxFlags, openat, statx};

use virtiofsd::filesystem::{
    Context, Entry, Extensions, FileSystem, FsOptions, GetxattrReply, ListxattrReply, OpenOptions,
    SetattrValid, SetxattrFlags, ZeroCopyReader, ZeroCopyWriter,
};
use virtiofsd::fuse::{ATTR_SUBMOUNT, Attr, SetattrIn};
use virtiofsd::passthrough::{
    CachePolicy, Config, InodeFileHandlesMode, NegotiationMode, PassthroughFs,
};

use super::names;
use super::policy::{Nodes, Owner};

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
    root: PathBuf,
    /// Of the session there is.
    top: Mutex<Option<Top>>,
    /// When a SYNCFS has ended last.
    synced: Mutex<Option<Instant>>,
}

/// Between one SYNCFS and the next. Each writes out what all of a host's file system holds, also
/// for others, so a guest that asks in a loop waits; its other requests do with it, and an order to
/// stop.
const SYNCFS_INTERVAL: Duration = Duration::from_millis(250);

/// The share's own file system.
struct Top {
    /// `O_PATH`.
    root: OwnedFd,
    mount: MountId,
}

impl Top {
    fn open(root: &Path) -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let root = openat(CWD, root, flags, Mode::empty())?;
        let (mount, _) = placed(&root, Path::new(""))?;
        Ok(Self { root, mount })
    }

    /// Whether the file at `path` with this inode number is on another mount. Not one that has
    /// become another since.
    fn is_mounted(&self, path: &Path, number: u64) -> bool {
        placed(&self.root, path).is_ok_and(|found| found.0 != self.mount && found.1 == number)
    }
}

/// Tells a mount from others of this namespace, and a file system from others where the kernel does
/// not number mounts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct MountId {
    mount: u64,
    device: (u32, u32),
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
            root: root.into(),
            top: Mutex::default(),
            synced: Mutex::default(),
        })
    }

    /// All of it is the guest's, the root included.
    #[cfg(any(test, feature = "testing"))]
    pub(super) fn of_guest(self) -> Self {
        lock(&self.nodes).give_root_to_guest();
        self
    }

    /// The table of the inodes the guest holds.
    pub(super) fn nodes(&self) -> Arc<Mutex<Nodes>> {
        Arc::clone(&self.nodes)
    }

    fn admit(&self, parent: u64, name: &CStr, mut entry: Entry) -> Entry {
        let mut nodes = lock(&self.nodes);
        let owner = match nodes.supervisors_path(parent, name) {
            Some(path) => self.owner(path, &entry),
            None => Owner::Guest,
        };
        entry.entry_timeout = nodes.found(parent, name, entry.inode, owner);
        entry.attr_timeout = nodes.timeout(entry.inode);
        if nodes.is_rootfs_mount(parent, entry.inode) {
            entry.attr.flags &= !ATTR_SUBMOUNT;
        }
        entry
    }

    /// Whose the file is that was found at `path`, in a directory of the supervisor's: the guest's
    /// if it is on another mount. The library says so of directories; of a file it is asked here.
    fn owner(&self, path: PathBuf, entry: &Entry) -> Owner {
        let top = self.top.lock().unwrap_or_else(PoisonError::into_inner);
        let mounted = entry.attr.flags & ATTR_SUBMOUNT != 0
            || top
                .as_ref()
                .is_some_and(|top| top.is_mounted(&path, entry.attr.ino));
        if mounted {
            Owner::Guest
        } else {
            Owner::Supervisor(path)
        }
    }

    /// Passes inodes that the guest may change, or change something in.
    fn check_change(&self, inode: u64) -> io::Result<()> {
        lock(&self.nodes).check_change(inode)
    }

    /// The same for one that is opened with `flags`.
    fn check_open(&self, inode: u64, flags: u32) -> io::Result<()> {
        if flags & WRITING == 0 {
            return Ok(());
        }
        self.check_change(inode)
    }

    fn timed(&self, inode: u64, attr: Attr) -> (Attr, Duration) {
        (attr, lock(&self.nodes).timeout(inode))
    }
}

/// Flags of an open that is more than reading. `O_TMPFILE` makes a file in the directory that is
/// opened.
const WRITING: u32 =
    (libc::O_ACCMODE | libc::O_TRUNC | libc::O_CREAT | (libc::O_TMPFILE & !libc::O_DIRECTORY))
        .cast_unsigned();

/// The mount that `path` below `root` is on, and the inode's number there. A link at its end is not
/// followed; the others are directories of the supervisor's.
fn placed(root: &OwnedFd, path: &Path) -> io::Result<(MountId, u64)> {
    let flags = AtFlags::EMPTY_PATH | AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
    let stat = statx(root, path, flags, StatxFlags::INO | StatxFlags::MNT_ID)?;
    let mount = MountId {
        mount: stat.stx_mnt_id,
        device: (stat.stx_dev_major, stat.stx_dev_minor),
    };
    Ok((mount, stat.stx_ino))
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
        let top = Top::open(&self.root)?;
        *self.top.lock().unwrap_or_else(PoisonError::into_inner) = Some(top);
        // A symbolic link never changes: a new target is a new inode.
        Ok(self.files.init(capable)? | FsOptions::CACHE_SYMLINKS)
    }

    fn destroy(&self) {
        lock(&self.nodes).clear();
        self.files.destroy();
    }

    fn lookup(&self, ctx: Context, parent: u64, name: &CStr) -> io::Result<Entry> {
        lock(&self.nodes).check_held(parent)?;
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
        self.check_change(inode)?;
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
        self.check_change(inode)?;
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
        self.check_change(inode)?;
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
        self.check_change(inode)?;
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
        self.check_change(inode)?;
        self.files.removexattr(ctx, inode, name)
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
        self.check_change(inode_out)?;
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
        let mut last = self.synced.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(last) = *last {
            thread::sleep(SYNCFS_INTERVAL.saturating_sub(last.elapsed()));
        }
        let synced = self.files.syncfs(ctx, inode);
        *last = Some(Instant::now());
        synced
    }
}
