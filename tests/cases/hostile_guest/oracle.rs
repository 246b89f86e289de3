//! What must be so while a guest attacks and after it: a second sandbox answers, files of the host are as they were, nothing is left, and the
//! attacked VMM weighs no more than it may.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use harness::{Background, Bundle, Remains, Runtime};
use tempfile::TempDir;

/// Within this whoever is not attacked answers, and whoever is must answer its owner: far more than it takes on a busy emulated host, far less
/// than for ever.
pub(super) const ANSWER: Duration = Duration::from_secs(120);

/// Within this a guest has gone through its attacks.
const ATTACKS: Duration = Duration::from_secs(600);

/// Between two looks at what is about to happen.
pub(super) const LOOK: Duration = Duration::from_millis(20);

/// A host with a sandbox on it that nobody attacks, and files that nobody touches.
pub(super) struct Canary<'a> {
    container: Background<'a>,
    beside: TempDir,
    files: Files,
    remains: Remains,
}

impl<'a> Canary<'a> {
    /// Puts it there.
    pub(super) fn on(host: &'a Runtime) -> Self {
        let beside = TempDir::new().unwrap();
        fs::create_dir(beside.path().join("folder")).unwrap();
        for name in ["file", "folder/file"] {
            fs::write(beside.path().join(name), name).unwrap();
        }
        let bundle = Bundle::busybox()
            .bind(beside.path(), "/beside", &["rbind", "ro"])
            .args(&["sleep", "100000"]);
        let container = Background::started(host, bundle);
        Self {
            files: Files::of(beside.path(), None),
            remains: Remains::seen(),
            container,
            beside,
        }
    }

    /// It answers now.
    #[track_caller]
    pub(super) fn answers(&self) {
        let start = Instant::now();
        let output = self.container.exec(&["cat", "/beside/folder/file"]);
        output.assert_prints("folder/file");
        assert!(
            start.elapsed() < ANSWER,
            "the other sandbox answered after {:?}",
            start.elapsed()
        );
    }

    /// It answers, its files are as they were, and nothing is left of `id` in a state directory.
    #[track_caller]
    pub(super) fn assert_untouched(&self, id: &str, root: &Path) {
        self.answers();
        assert_eq!(self.container.status(), "running");
        self.files.assert_same(&Files::of(self.beside.path(), None));
        self.remains.assert_nothing_new(id, root);
    }
}

/// What a directory of the host has in it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Files(BTreeMap<PathBuf, FileState>);

#[derive(Debug, PartialEq, Eq)]
struct FileState {
    mode: u32,
    owner: (u32, u32),
    changed: (i64, i64),
    contents: Vec<u8>,
}

impl Files {
    /// All below `directory` but what is below `left_out`.
    pub(super) fn of(directory: &Path, left_out: Option<&Path>) -> Self {
        let mut files = BTreeMap::new();
        let mut rest = vec![directory.to_owned()];
        while let Some(path) = rest.pop() {
            if left_out.is_some_and(|left_out| path == left_out) {
                continue;
            }
            let metadata = fs::symlink_metadata(&path).unwrap();
            let mut contents = Vec::new();
            if metadata.is_dir() {
                rest.extend(
                    fs::read_dir(&path)
                        .unwrap()
                        .map(|entry| entry.unwrap().path()),
                );
            } else if metadata.is_file() {
                contents = fs::read(&path).unwrap();
            }
            let state = FileState {
                mode: metadata.mode(),
                owner: (metadata.uid(), metadata.gid()),
                changed: (metadata.mtime(), metadata.mtime_nsec()),
                contents,
            };
            files.insert(path, state);
        }
        Self(files)
    }

    /// They have not changed.
    #[track_caller]
    pub(super) fn assert_same(&self, now: &Self) {
        let paths = self.0.keys().chain(now.0.keys());
        let changed: Vec<_> = paths
            .filter(|path| self.0.get(*path) != now.0.get(*path))
            .collect();
        assert!(
            changed.is_empty(),
            "files of the host have changed: {changed:?}"
        );
    }
}

/// What a VMM may have at the most.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    /// Open files.
    pub(super) descriptors: usize,
    /// Memory beside the guest's, KiB.
    pub(super) own_kib: u64,
    /// Threads.
    pub(super) threads: usize,
}

impl Bounds {
    /// Of a VMM that has nothing to hold for its guest. It has 2 MiB and some forty descriptors.
    pub(super) const IDLE: Self = Self {
        descriptors: 128,
        own_kib: 12 * 1024,
        threads: 16,
    };
}

/// Weighs a process again and again while it is attacked.
pub(super) struct Scales {
    over: Sender<()>,
    thread: JoinHandle<Option<Bounds>>,
}

impl Scales {
    /// Puts the process on them.
    pub(super) fn under(pid: u32) -> Self {
        let (over, is_over) = mpsc::channel();
        let thread = thread::spawn(move || {
            let mut most: Option<Bounds> = None;
            // It has ended when it cannot be weighed.
            while let Some(now) = weigh(pid) {
                let before = most.unwrap_or(now);
                most = Some(Bounds {
                    descriptors: before.descriptors.max(now.descriptors),
                    own_kib: before.own_kib.max(now.own_kib),
                    threads: before.threads.max(now.threads),
                });
                if is_over.recv_timeout(LOOK) != Err(RecvTimeoutError::Timeout) {
                    break;
                }
            }
            most
        });
        Self { over, thread }
    }

    /// It never weighed more than this.
    #[track_caller]
    pub(super) fn assert_within(self, bounds: Bounds) {
        // It may be over by itself.
        let _ = self.over.send(());
        let most = self.thread.join().unwrap().expect("the VMM was weighed");
        println!("the VMM had at the most {most:?}");
        assert!(
            most.descriptors <= bounds.descriptors
                && most.own_kib <= bounds.own_kib
                && most.threads <= bounds.threads,
            "the VMM had {most:?}, more than {bounds:?}"
        );
    }
}

fn weigh(pid: u32) -> Option<Bounds> {
    let process = PathBuf::from(format!("/proc/{pid}"));
    let count = |name| Some(fs::read_dir(process.join(name)).ok()?.count());
    let maps = fs::read_to_string(process.join("smaps")).ok()?;
    Some(Bounds {
        descriptors: count("fd")?,
        threads: count("task")?,
        own_kib: own_kib(&maps),
    })
}

/// The memory of all mappings but those of the guest's memory: for these alone huge pages are asked for (the flag `hg`).
fn own_kib(maps: &str) -> u64 {
    let (mut own, mut resident) = (0, 0);
    for line in maps.lines() {
        if let Some(kib) = line.strip_prefix("Rss:") {
            resident = kib.trim().trim_end_matches(" kB").parse().unwrap_or(0);
        } else if let Some(flags) = line.strip_prefix("VmFlags:")
            && !flags.split_whitespace().any(|flag| flag == "hg")
        {
            own += resident;
        }
    }
    own
}

/// Looks until there is something; fails when that takes too long.
#[track_caller]
#[expect(
    clippy::disallowed_methods,
    reason = "logs and records have no event, and the emulated host has one CPU"
)]
pub(super) fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(start.elapsed() < ATTACKS, "{what}: not within {ATTACKS:?}");
        thread::sleep(LOOK);
    }
}

/// What the hostile guest said.
#[derive(Debug)]
pub(super) struct Words(pub(super) String);

impl Words {
    /// It went through all of these attacks, and nothing came out wrong.
    #[track_caller]
    pub(super) fn assert_all_well(&self, attacks: &str) {
        let said: Vec<&str> = self
            .0
            .lines()
            .filter(|line| line.contains("hostile: "))
            .collect();
        let shown = said.join("\n");
        assert!(
            !shown.contains("WRONG"),
            "the guest could do what it must not:\n{shown}"
        );
        for attack in attacks.split_whitespace() {
            let is_done = said.iter().any(|line| {
                line.contains(&format!("hostile: {attack}: ")) && line.contains(" tried, 0 wrong")
            });
            assert!(is_done, "{attack} was not finished:\n{shown}");
        }
    }
}
