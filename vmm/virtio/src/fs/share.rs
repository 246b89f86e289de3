//! The shared directory as the FUSE server sees it: virtiofsd's passthrough of host files, with names checked and cache times set.
//!
//! Every operation forwards to `PassthroughFs`. Added here, and only here:
//! - a name is checked ([`super::names`]) by each operation that takes one;
//! - the host's file systems are not written out without end;
//! - nothing above the mounts of the containers is changed: `EROFS` ([`super::policy`]);
//! - what an operation tells the guest of is entered in the table of inodes, and carries that table's times ([`super::policy`]);
//! - what was read of a directory and did not fit into an answer is kept ([`super::listing`]);
//! - files without a name are made and served here ([`super::unnamed`]);
//! - extended attributes that the host keeps from a guest have other names there
//!   ([`super::attributes`]);
//! - an offset no file has, which the library would panic at, is refused;
//! - a guest that cannot tell the mounts below the share apart is refused at INIT: two files with one inode number would be one to it;
//! - locks on files of volumes are taken on the host, and none is waited for ([`super::locks`]);
//! - a rootfs is not announced as a mount, though it is one: Linux gives announced mounts no mark (`SB_NOSEC`) without which every write is
//!   preceded by a question for `security.capability`. Volumes are, so their inode numbers cannot be taken for the rootfs's.
//!
//! An inode is an `O_PATH` descriptor of this process, and so is an open file. File handles instead of descriptors are not used: overlayfs, the
//! usual rootfs, decodes none, and `open_by_handle_at` wants `CAP_DAC_READ_SEARCH`, with which a VMM taken over by its guest could open any
//! file of a file system, jail or not. Both kinds count against one limit, and an operation beyond it fails with `ENFILE`.

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::ops::Deref;
use std::os::fd::AsRawFd as _;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, Mode, OFlags, linkat, openat};

use virtiofsd::filesystem::{Context, Entry, FileSystem, OpenOptions};
use virtiofsd::fuse::{ATTR_SUBMOUNT, Attr};
use virtiofsd::oslib::ScopedUmask;
use virtiofsd::passthrough::credentials::UnixCredentials;
use virtiofsd::passthrough::{
    CachePolicy, Config, InodeFileHandlesMode, NegotiationMode, PassthroughFs,
};
use virtiofsd::soft_idmap::{HostGid, HostUid, Id as _};

use super::lent;
use super::listing::Listings;
use super::locks::Locks;
use super::policy::{Nodes, Owner};
use super::tmpfile::Wanted;
use super::top::Top;
use super::unnamed::{self, UNNAMED_MAX, Unnamed, is_unnamed};

/// Locks.
mod locked;
/// The operations of FUSE.
mod operations;

/// What a guest may make the host hold for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Limits {
    /// Inodes and open files together, one descriptor each.
    pub(super) descriptors: u64,
    /// Inodes beyond which the guest is asked to give back each further one after use.
    pub(super) kept_inodes: usize,
}

/// A directory of the host with the guest's view of it. Its clones are the same.
#[derive(Clone)]
pub(super) struct Share(Arc<Shared>);

/// What a share has.
pub(super) struct Shared {
    files: PassthroughFs,
    proc_self_fd: File,
    nodes: Arc<Mutex<Nodes>>,
    root: PathBuf,
    /// Of the session there is.
    top: Mutex<Option<Top>>,
    /// Directories that are being read.
    listings: Mutex<Listings>,
    /// Files without a name.
    unnamed: Mutex<Unnamed>,
    /// Locks on files of volumes.
    locks: Mutex<Locks>,
    /// Whether names are looked up for READDIRPLUS.
    listing: AtomicBool,
    /// When a SYNCFS has ended last.
    synced: Mutex<Option<Instant>>,
}

impl Deref for Share {
    type Target = Shared;

    fn deref(&self) -> &Shared {
        &self.0
    }
}

/// Locks a table of inodes, which has no state between two statements that a panic could tear apart.
pub(super) fn lock(nodes: &Mutex<Nodes>) -> MutexGuard<'_, Nodes> {
    nodes.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Share {
    /// Shares `root`, a path as the calling thread sees it. `proc_self_fd` is this process's `/proc/self/fd`.
    pub(super) fn new(root: &str, proc_self_fd: File, limits: Limits) -> io::Result<Self> {
        let unnamed = (limits.descriptors / 8).min(UNNAMED_MAX);
        let files = PassthroughFs::new(Config {
            root_dir: root.to_owned(),
            proc_sfd_rawfd: Some(proc_self_fd.try_clone()?),
            guest_fd_limit: limits.descriptors - unnamed,
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
        Ok(Self(Arc::new(Shared {
            files,
            proc_self_fd,
            unnamed: Mutex::new(Unnamed::new(unnamed)),
            nodes: Arc::new(Mutex::new(Nodes::new(limits.kept_inodes))),
            root: root.into(),
            top: Mutex::default(),
            listings: Mutex::default(),
            locks: Mutex::default(),
            listing: AtomicBool::new(false),
            synced: Mutex::default(),
        })))
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

    /// Says whether names are looked up for READDIRPLUS from now on.
    pub(super) fn set_listing(&self, listing: bool) {
        self.listing.store(listing, Ordering::Relaxed);
    }

    fn listings(&self) -> MutexGuard<'_, Listings> {
        self.listings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn unnamed(&self) -> MutexGuard<'_, Unnamed> {
        self.unnamed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Calls `action` with the directory `inode`, opened with `O_PATH`.
    fn in_directory<T>(
        &self,
        ctx: Context,
        inode: u64,
        action: impl FnOnce(&File) -> io::Result<T>,
    ) -> io::Result<T> {
        let flags = libc::O_PATH.cast_unsigned();
        let (handle, _) = self.files.opendir(ctx, inode, flags)?;
        let handle = handle.ok_or_else(|| io::Error::from_raw_os_error(libc::EBADF))?;
        let done = lent::file(&self.files, ctx, inode, handle, action);
        self.files.releasedir(ctx, inode, flags, handle)?;
        done
    }

    /// Calls `action` with an open file, with or without a name.
    fn with_open<T>(
        &self,
        ctx: Context,
        inode: u64,
        handle: u64,
        action: impl FnOnce(&File) -> io::Result<T>,
    ) -> io::Result<T> {
        if is_unnamed(inode) {
            let file = self.unnamed().opened(inode, handle)?;
            return action(&file);
        }
        lent::file(&self.files, ctx, inode, handle, action)
    }

    /// Makes a file without a name in the directory `parent`, and opens it.
    pub(super) fn make_unnamed(
        &self,
        ctx: Context,
        parent: u64,
        wanted: &Wanted,
    ) -> io::Result<(Entry, u64, OpenOptions)> {
        self.check_change(parent)?;
        self.unnamed().check_room(2)?;
        let file = self.in_directory(ctx, parent, |directory| {
            let user = HostUid::from(ctx.uid.into_inner());
            let group = HostGid::from(ctx.gid.into_inner());
            let _set_id = unnamed::without_set_id(wanted.kill_priv)?;
            let _credentials = UnixCredentials::new(user, group)
                .supplementary_gid(true, wanted.groups.clone())
                .set()?;
            let _umask = ScopedUmask::new(wanted.umask);
            let flags = unnamed::opening(wanted.flags) | OFlags::TMPFILE;
            let mode = Mode::from_bits_truncate(wanted.mode);
            Ok(File::from(openat(directory, c".", flags, mode)?))
        })?;
        let statistics = self.files.statfs(ctx, parent)?;
        let attr = unnamed::attributes(&file)?;
        let (inode, handle) = self.unnamed().enter(file, statistics);
        let mut nodes = lock(&self.nodes);
        // Without a name, it is where its directory is.
        let entry_timeout = nodes.found(parent, c"", inode, Owner::Guest);
        nodes.has_twin(inode);
        let entry = Entry {
            inode,
            generation: 0,
            attr,
            attr_timeout: nodes.timeout(inode),
            entry_timeout,
        };
        let options = nodes.open_options(inode, false);
        Ok((entry, handle, options))
    }

    /// Links a file without a name into the tree, where it is another inode.
    fn name_unnamed(
        &self,
        ctx: Context,
        inode: u64,
        parent: u64,
        name: &CStr,
    ) -> io::Result<Entry> {
        let file = self.unnamed().file(inode)?;
        self.in_directory(ctx, parent, |directory| {
            let number = file.as_raw_fd().to_string();
            let from = &self.proc_self_fd;
            Ok(linkat(
                from,
                number,
                directory,
                name,
                AtFlags::SYMLINK_FOLLOW,
            )?)
        })?;
        let found = self.files.lookup(ctx, parent, name)?;
        let mut entry = self.admit(parent, name, found);
        lock(&self.nodes).has_twin(entry.inode);
        entry.attr_timeout = Duration::ZERO;
        Ok(entry)
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
