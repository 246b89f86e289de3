//! What the guest may change, and what it may remember of which file and for how long. Pure.
//!
//! The share is one tree; the supervisor gives each container a directory in it:
//!
//! ```text
//!   /                        Share      written by the supervisor while the guest runs: nothing may be remembered
//!   /<container>/            Container  the same
//!   /<container>/rootfs/**   Rootfs     belongs to this sandbox: remembered for seconds, pages kept across opens
//!   /<container>/<other>/**  Volume     the host or another sandbox may write it at any time: nothing is remembered
//! ```
//!
//! What is on the share's own file system, above and between the mounts of the containers, is the
//! supervisor's: its directories and the empty files and directories on which it mounts. A guest
//! changes nothing of it ([`Nodes::check_change`]), whatever becomes of the mounts, for the
//! supervisor resolves paths through it.
//!
//! A time of zero makes a virtio-fs client ask again at every use and give the inode back (FORGET)
//! after it. That is also how the table of inodes is kept small: once a guest holds
//! [`Nodes::kept_max`] of them, every further answer carries zero times, wherever the file is. Page
//! cache follows attributes (`FUSE_AUTO_INVAL_DATA`): pages are dropped when a fresh size or mtime
//! says that the file is another.

use std::collections::HashMap;
use std::ffi::{CStr, OsStr};
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use virtiofsd::filesystem::{OpenOptions, ROOT_ID};

/// The directory of a container that holds its rootfs.
const ROOTFS: &[u8] = b"rootfs";

/// Names and attributes in a rootfs. Somebody on the host may still copy a file in (`docker cp`): this long it may go unseen.
const ROOTFS_TIMEOUT: Duration = Duration::from_secs(5);
/// That a name is absent from a rootfs. Shorter, since "copied in, not found" is what a person notices.
const ROOTFS_ABSENT_TIMEOUT: Duration = Duration::from_secs(1);

/// Where in the share a file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Realm {
    Share,
    Container,
    Rootfs,
    Volume,
}

impl Realm {
    fn of_child(self, name: &CStr) -> Self {
        match self {
            Self::Share => Self::Container,
            Self::Container if name.to_bytes() == ROOTFS => Self::Rootfs,
            Self::Container => Self::Volume,
            below => below,
        }
    }

    /// How long names and attributes stay valid.
    fn timeout(self) -> Duration {
        match self {
            Self::Rootfs => ROOTFS_TIMEOUT,
            Self::Share | Self::Container | Self::Volume => Duration::ZERO,
        }
    }

    /// How long the absence of a name stays valid. None: absence is not remembered.
    fn absent_timeout(self) -> Option<Duration> {
        (self == Self::Rootfs).then_some(ROOTFS_ABSENT_TIMEOUT)
    }

    /// What the guest may keep of an opened file or directory from the last time it was open; and that it need not report a close, at which
    /// a local file system has nothing to say.
    fn open_options(self, directory: bool) -> OpenOptions {
        match (self, directory) {
            (Self::Rootfs, false) => OpenOptions::KEEP_CACHE | OpenOptions::NOFLUSH,
            (Self::Rootfs, true) => OpenOptions::KEEP_CACHE | OpenOptions::CACHE_DIR,
            (Self::Share | Self::Container | Self::Volume, _) => OpenOptions::empty(),
        }
    }
}

/// Whose a file is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Owner {
    /// On the share's own file system, at this path below the share.
    Supervisor(PathBuf),
    /// On a mount below it.
    Guest,
}

#[derive(Debug)]
struct Node {
    realm: Realm,
    owner: Owner,
    /// Another inode is the same file.
    is_twin: bool,
    /// How often the guest was told of it since it last gave it back.
    lookups: u64,
}

/// Every inode the guest holds, and where it is.
#[derive(Debug)]
pub(super) struct Nodes {
    held: HashMap<u64, Node>,
    kept_max: usize,
    root: Owner,
}

impl Nodes {
    /// An empty table. `kept_max`: how many inodes the guest may hold before it is asked to give back each further one after use.
    pub(super) fn new(kept_max: usize) -> Self {
        Self {
            held: HashMap::new(),
            kept_max,
            root: Owner::Supervisor(PathBuf::new()),
        }
    }

    /// The share has no levels of the supervisor's: for tests of what happens below them, which can
    /// mount nothing.
    #[cfg(any(test, feature = "testing"))]
    pub(super) fn give_root_to_guest(&mut self) {
        self.root = Owner::Guest;
    }

    /// Forgets everything: the guest has unmounted.
    pub(super) fn clear(&mut self) {
        self.held = HashMap::new();
    }

    /// Whether the guest holds no inode but the root.
    pub(super) fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    /// How many inodes the guest holds, the root aside.
    #[cfg(test)]
    pub(super) fn count(&self) -> usize {
        self.held.len()
    }

    /// The guest is told that `inode` is `name` in `parent`. Returns how long it may believe that: as long as it may believe anything about
    /// `parent`, so that the mount point of a rootfs is asked for anew.
    pub(super) fn found(&mut self, parent: u64, name: &CStr, inode: u64, owner: Owner) -> Duration {
        let realm = self.realm(parent).of_child(name);
        let node = self.held.entry(inode).or_insert(Node {
            realm,
            owner,
            is_twin: false,
            lookups: 0,
        });
        node.lookups = node.lookups.saturating_add(1);
        self.timeout(parent)
    }

    /// Another inode is the same file as `inode`: what is changed by the one, the guest does not
    /// know of the other.
    pub(super) fn has_twin(&mut self, inode: u64) {
        if let Some(node) = self.held.get_mut(&inode) {
            node.is_twin = true;
        }
    }

    /// Where `name` in `parent` is if nothing is mounted there: None below a mount, where all is
    /// the guest's.
    pub(super) fn supervisors_path(&self, parent: u64, name: &CStr) -> Option<PathBuf> {
        match self.owner(parent)? {
            Owner::Supervisor(path) => {
                Some(path.join(Path::new(OsStr::from_bytes(name.to_bytes()))))
            }
            Owner::Guest => None,
        }
    }

    /// Passes what is the guest's to change.
    ///
    /// # Errors
    /// `EROFS`, also for an inode that the guest does not hold.
    pub(super) fn check_change(&self, inode: u64) -> io::Result<()> {
        match self.owner(inode) {
            Some(Owner::Guest) => Ok(()),
            Some(Owner::Supervisor(_)) | None => Err(io::Error::from_raw_os_error(libc::EROFS)),
        }
    }

    /// Passes inodes that the guest holds, so that it is known whose what is found in them is.
    ///
    /// # Errors
    /// `EBADF`.
    pub(super) fn check_held(&self, inode: u64) -> io::Result<()> {
        match self.owner(inode) {
            Some(_) => Ok(()),
            None => Err(io::Error::from_raw_os_error(libc::EBADF)),
        }
    }

    /// The guest gives back `count` of the times it was told of `inode`.
    pub(super) fn forgotten(&mut self, inode: u64, count: u64) {
        if let Some(node) = self.held.get_mut(&inode) {
            node.lookups = node.lookups.saturating_sub(count);
            if node.lookups == 0 {
                self.held.remove(&inode);
            }
        }
    }

    /// How long attributes of `inode` stay valid.
    pub(super) fn timeout(&self, inode: u64) -> Duration {
        if self.is_full() || self.is_twin(inode) {
            Duration::ZERO
        } else {
            self.realm(inode).timeout()
        }
    }

    /// How long it stays valid that a name is absent from `parent`.
    pub(super) fn absent_timeout(&self, parent: u64) -> Option<Duration> {
        self.realm(parent).absent_timeout()
    }

    /// What the guest may keep of `inode` when it opens it.
    pub(super) fn open_options(&self, inode: u64, directory: bool) -> OpenOptions {
        if self.is_twin(inode) {
            return OpenOptions::empty();
        }
        self.realm(inode).open_options(directory)
    }

    /// Whether `inode` is in a volume, which others have too.
    pub(super) fn is_of_volume(&self, inode: u64) -> bool {
        self.realm(inode) == Realm::Volume && self.owner(inode) == Some(&Owner::Guest)
    }

    /// Whether `inode`, found in `parent`, is where a rootfs is mounted.
    pub(super) fn is_rootfs_mount(&self, parent: u64, inode: u64) -> bool {
        self.realm(parent) == Realm::Container && self.realm(inode) == Realm::Rootfs
    }

    fn owner(&self, inode: u64) -> Option<&Owner> {
        if inode == ROOT_ID {
            return Some(&self.root);
        }
        self.held.get(&inode).map(|node| &node.owner)
    }

    fn is_twin(&self, inode: u64) -> bool {
        self.held.get(&inode).is_some_and(|node| node.is_twin)
    }

    fn is_full(&self) -> bool {
        self.held.len() > self.kept_max
    }

    /// An inode the guest does not hold is treated with the most care.
    fn realm(&self, inode: u64) -> Realm {
        if inode == ROOT_ID {
            return Realm::Share;
        }
        self.held
            .get(&inode)
            .map_or(Realm::Volume, |node| node.realm)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A table with `/c`, `/c/rootfs`, `/c/rootfs/bin`, `/c/mounts`, `/c/mounts/data` as inodes 2 to 6.
    fn tree(kept_max: usize) -> Nodes {
        let supervisors = |path: &str| Owner::Supervisor(PathBuf::from(path));
        let mut nodes = Nodes::new(kept_max);
        nodes.found(ROOT_ID, c"c", 2, supervisors("c"));
        nodes.found(2, c"rootfs", 3, Owner::Guest);
        nodes.found(3, c"bin", 4, Owner::Guest);
        nodes.found(2, c"mounts", 5, supervisors("c/mounts"));
        nodes.found(5, c"data", 6, Owner::Guest);
        nodes
    }

    #[test]
    fn guest_changes_what_is_mounted_and_nothing_above_it() {
        let mut nodes = tree(100);
        nodes.found(5, c"1", 7, Owner::Supervisor(PathBuf::from("c/mounts/1")));
        let errno = |inode| {
            nodes
                .check_change(inode)
                .err()
                .and_then(|e| e.raw_os_error())
        };
        for inode in [ROOT_ID, 2, 5, 7, 99] {
            assert_eq!(errno(inode), Some(libc::EROFS), "{inode}");
        }
        for inode in [3, 4, 6] {
            assert_eq!(errno(inode), None, "{inode}");
        }
    }

    #[test]
    fn paths_are_known_of_what_is_the_supervisors() {
        let nodes = tree(100);
        let path = |parent, name| nodes.supervisors_path(parent, name);
        assert_eq!(path(ROOT_ID, c"d"), Some("d".into()));
        assert_eq!(path(5, c"0"), Some("c/mounts/0".into()));
        assert_eq!(path(3, c"bin"), None);
        assert!(nodes.check_held(ROOT_ID).is_ok() && nodes.check_held(99).is_err());
    }

    #[test]
    fn only_what_is_below_a_rootfs_is_remembered() {
        let nodes = tree(100);
        for inode in [3, 4] {
            assert_eq!(nodes.timeout(inode), ROOTFS_TIMEOUT);
            assert_eq!(nodes.absent_timeout(inode), Some(ROOTFS_ABSENT_TIMEOUT));
            let kept = OpenOptions::KEEP_CACHE | OpenOptions::NOFLUSH;
            assert_eq!(nodes.open_options(inode, false), kept);
        }
        assert!(nodes.is_of_volume(6) && !nodes.is_of_volume(4) && !nodes.is_of_volume(5));
        for inode in [ROOT_ID, 2, 5, 6, 99] {
            assert_eq!(nodes.timeout(inode), Duration::ZERO);
            assert_eq!(nodes.absent_timeout(inode), None);
            assert_eq!(nodes.open_options(inode, true), OpenOptions::empty());
        }
    }

    #[test]
    fn of_a_file_with_two_inodes_nothing_is_remembered() {
        let mut nodes = tree(100);
        nodes.has_twin(4);
        assert_eq!(nodes.timeout(4), Duration::ZERO);
        assert_eq!(nodes.open_options(4, false), OpenOptions::empty());
        assert_eq!(nodes.found(3, c"bin", 4, Owner::Guest), ROOTFS_TIMEOUT);
    }

    #[test]
    fn rootfs_deeper_in_a_volume_is_a_volume() {
        let mut nodes = tree(100);
        assert_eq!(nodes.found(6, c"rootfs", 7, Owner::Guest), Duration::ZERO);
        assert_eq!(nodes.timeout(7), Duration::ZERO);
    }

    #[test]
    fn rootfs_is_told_from_volumes_and_from_what_is_in_it() {
        let nodes = tree(100);
        assert!(nodes.is_rootfs_mount(2, 3));
        for (parent, inode) in [(ROOT_ID, 2), (2, 5), (3, 4), (5, 6)] {
            assert!(!nodes.is_rootfs_mount(parent, inode));
        }
    }

    #[test]
    fn mount_point_of_a_rootfs_is_looked_up_anew() {
        let mut nodes = tree(100);
        assert_eq!(nodes.found(2, c"rootfs", 3, Owner::Guest), Duration::ZERO);
        assert_eq!(nodes.found(3, c"bin", 4, Owner::Guest), ROOTFS_TIMEOUT);
    }

    #[test]
    fn inode_is_held_until_every_lookup_is_given_back() {
        let mut nodes = tree(100);
        nodes.found(3, c"bin", 4, Owner::Guest);
        nodes.forgotten(4, 1);
        assert_eq!(nodes.count(), 5);
        nodes.forgotten(4, 1);
        assert_eq!(nodes.count(), 4);
        nodes.forgotten(4, u64::MAX);
        nodes.forgotten(3, u64::MAX);
        assert_eq!(nodes.count(), 3);
    }

    #[test]
    fn full_table_lets_the_guest_keep_nothing_more() {
        let mut nodes = tree(5);
        assert_eq!(nodes.timeout(4), ROOTFS_TIMEOUT);
        assert_eq!(nodes.found(3, c"lib", 7, Owner::Guest), Duration::ZERO);
        nodes.forgotten(7, 1);
        assert_eq!(nodes.timeout(4), ROOTFS_TIMEOUT);
    }
}
