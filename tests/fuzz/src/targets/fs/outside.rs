//! A directory with a share in it and files beside the share, watched: whoever opens, reads or
//! changes one of those is noticed, and whoever changes one of the levels that are the supervisor's.

use std::collections::BTreeSet;
use std::fs::{self, Permissions};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use rustix::mount::{UnmountFlags, mount_bind, unmount};

const SHARE: &str = "share";
const PRECIOUS: &str = "precious";
/// The supervisor's levels, below the share.
const LEVELS: [&str; 4] = ["", "c", "c/mounts", "d"];
/// What is mounted at them, and where its files are, beside the share.
const MOUNTS: [(&str, &str); 4] = [
    ("c/rootfs", "store/c"),
    ("c/mounts/0", "store/0"),
    ("c/mounts/1", "store/1"),
    ("d/rootfs", "store/d"),
];
/// Files of the mounts.
const FILES: [&str; 4] = [
    "store/c/file",
    "store/c/dir/file",
    "store/0/file",
    "store/d/file",
];

#[derive(Debug)]
pub(super) struct Outside {
    root: PathBuf,
    share: String,
    watch: OwnedFd,
    /// The watch of `root`, which has the share in it.
    above: i32,
}

impl Outside {
    /// A directory of this process's own below `TMPDIR`, which `hack/fuzz` has made small.
    pub(super) fn new() -> Self {
        let root = std::env::temp_dir().join(format!("husk-fuzz-{}", std::process::id()));
        let share = root.join(SHARE);
        for directory in ["beside/deeper", "store"] {
            fs::create_dir_all(root.join(directory)).unwrap();
        }
        for directory in ["c/rootfs", "c/mounts/0", "d/rootfs"] {
            fs::create_dir_all(share.join(directory)).unwrap();
        }
        for file in ["victim", "beside/victim", "share/c/mounts/1"] {
            fs::write(root.join(file), PRECIOUS).unwrap();
        }
        let watch = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK).unwrap();
        let add = |path: &Path, flags| inotify::add_watch(&watch, path, flags).unwrap();
        let above = add(&root, WatchFlags::ALL_EVENTS);
        for directory in ["beside", "beside/deeper"] {
            add(&root.join(directory), WatchFlags::ALL_EVENTS);
        }
        let changes = WatchFlags::ATTRIB
            | WatchFlags::CREATE
            | WatchFlags::DELETE
            | WatchFlags::MODIFY
            | WatchFlags::MOVED_FROM
            | WatchFlags::MOVED_TO;
        for level in LEVELS {
            add(&share.join(level), changes);
        }
        Self {
            share: share.to_str().unwrap().to_owned(),
            root,
            watch,
            above,
        }
    }

    /// Where the share and its neighbours are.
    pub(super) fn path(&self) -> &Path {
        &self.root
    }

    /// The served directory.
    pub(super) fn share(&self) -> &str {
        &self.share
    }

    /// Makes what is mounted in the share anew: a container with a root file system and two volumes,
    /// links that lead out of it among its files, and another container.
    pub(super) fn lay_out_share(&self) {
        let share = Path::new(&self.share);
        for (place, _) in MOUNTS {
            // The first time there is none.
            let _unmounted = unmount(share.join(place), UnmountFlags::DETACH);
        }
        let store = self.root.join("store");
        fs::remove_dir_all(&store).unwrap();
        for directory in ["c/dir/deeper", "0", "d"] {
            fs::create_dir_all(store.join(directory)).unwrap();
        }
        fs::set_permissions(store.join("c/dir"), Permissions::from_mode(0o2775)).unwrap();
        for file in FILES.iter().chain(&["store/1"]) {
            fs::write(self.root.join(file), "contents").unwrap();
        }
        symlink("../../../victim", store.join("c/up")).unwrap();
        symlink(self.root.join("beside"), store.join("c/away")).unwrap();
        symlink("../../../../beside", store.join("0/up")).unwrap();
        symlink("/proc/self/fd", store.join("c/fds")).unwrap();
        for (place, files) in MOUNTS {
            mount_bind(self.root.join(files), share.join(place)).unwrap();
        }
        // A jailed process is in its share, and the server keeps where it is.
        std::env::set_current_dir(share).unwrap();
        while self.next_touch().is_some() {}
    }

    /// Panics if anything outside of the share, or of the supervisor's, was touched since the last
    /// time.
    pub(super) fn check(&self) {
        if let Some(touch) = self.next_touch() {
            panic!("{touch}");
        }
    }

    /// The next event but for those of the share's own directory being opened and read.
    fn next_touch(&self) -> Option<String> {
        let opened =
            ReadFlags::ACCESS | ReadFlags::OPEN | ReadFlags::CLOSE_NOWRITE | ReadFlags::ISDIR;
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut reader = inotify::Reader::new(&self.watch, &mut buffer);
        loop {
            let event = match reader.next() {
                Ok(event) => event,
                Err(rustix::io::Errno::AGAIN) => return None,
                Err(error) => panic!("read the watch: {error}"),
            };
            let name = event.file_name().map(|name| name.to_string_lossy());
            let is_share = event.wd() == self.above && name.as_deref() == Some(SHARE);
            if !(is_share && opened.contains(event.events())) {
                return Some(format!("touched: {name:?} {:?}", event.events()));
            }
        }
    }

    /// No descriptor that this process did not have before leads anywhere else than into the share.
    pub(super) fn check_descriptors(&self, known: &BTreeSet<PathBuf>) {
        for path in descriptors().difference(known) {
            let is_file =
                path.is_absolute() && !path.starts_with("/memfd:") && !path.starts_with("/proc");
            assert!(
                !is_file || path.starts_with(&self.share),
                "a descriptor of {}",
                path.display()
            );
        }
    }
}

/// What the descriptors of this process are of.
pub(super) fn descriptors() -> BTreeSet<PathBuf> {
    let entries = fs::read_dir("/proc/self/fd").unwrap();
    entries
        .filter_map(|entry| fs::read_link(entry.unwrap().path()).ok())
        .collect()
}
