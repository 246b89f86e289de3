//! A directory with a share in it and files beside the share, watched: whoever opens, reads or
//! changes one of those is noticed.

use std::collections::BTreeSet;
use std::fs::{self, Permissions};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use rustix::fs::inotify::{self, CreateFlags, WatchFlags};

const SHARE: &str = "share";
const PRECIOUS: &str = "precious";

#[derive(Debug)]
pub(super) struct Outside {
    root: PathBuf,
    share: String,
    watch: OwnedFd,
}

impl Outside {
    /// A directory of this process's own below `TMPDIR`, which `hack/fuzz` has made small.
    pub(super) fn new() -> Self {
        let root = std::env::temp_dir().join(format!("husk-fuzz-{}", std::process::id()));
        let _absent = fs::remove_dir_all(&root);
        fs::create_dir_all(root.join("beside/deeper")).unwrap();
        fs::write(root.join("victim"), PRECIOUS).unwrap();
        fs::write(root.join("beside/victim"), PRECIOUS).unwrap();
        let watch = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK).unwrap();
        for directory in ["", "beside", "beside/deeper"] {
            inotify::add_watch(&watch, root.join(directory), WatchFlags::ALL_EVENTS).unwrap();
        }
        Self {
            share: root.join(SHARE).to_str().unwrap().to_owned(),
            root,
            watch,
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

    /// Makes the share anew: a container with a root file system and two volumes, links that lead
    /// out of it among its files.
    pub(super) fn lay_out_share(&self) {
        let share = Path::new(&self.share);
        if share.exists() {
            fs::remove_dir_all(share).unwrap();
        }
        let rootfs = share.join("c/rootfs");
        for directory in ["c/rootfs/dir/deeper", "c/mounts/0", "d/rootfs"] {
            fs::create_dir_all(share.join(directory)).unwrap();
        }
        fs::set_permissions(rootfs.join("dir"), Permissions::from_mode(0o2775)).unwrap();
        for file in [
            "c/rootfs/file",
            "c/rootfs/dir/file",
            "c/mounts/0/file",
            "c/mounts/1",
            "d/rootfs/file",
        ] {
            fs::write(share.join(file), "contents").unwrap();
        }
        symlink("../../../victim", rootfs.join("up")).unwrap();
        symlink(self.root.join("beside"), rootfs.join("away")).unwrap();
        symlink("../../../beside", share.join("c/mounts/0/up")).unwrap();
        symlink("/proc/self/fd", rootfs.join("fds")).unwrap();
        // A jailed process is in its share, and the server keeps where it is.
        std::env::set_current_dir(share).unwrap();
    }

    /// Panics if anything outside of the share was touched since the last time.
    pub(super) fn check(&self) {
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut reader = inotify::Reader::new(&self.watch, &mut buffer);
        loop {
            match reader.next() {
                Ok(event) => {
                    let name = event
                        .file_name()
                        .map(|name| name.to_string_lossy().into_owned());
                    let flags = event.events();
                    assert!(
                        name.as_deref() == Some(SHARE),
                        "outside of the share: {name:?} {flags:?}"
                    );
                }
                Err(rustix::io::Errno::AGAIN) => break,
                Err(error) => panic!("read the watch: {error}"),
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
