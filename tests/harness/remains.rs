//! What a container could leave on the host: processes, mounts, cgroups, files of its state.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::wait;

/// How long a cgroup or process that is about to vanish may take, and how often it is looked at.
const PATIENCE: Duration = Duration::from_secs(60);
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// What was there at one time.
#[derive(Debug)]
pub struct Remains {
    mounts: BTreeSet<String>,
}

impl Remains {
    /// Now.
    #[must_use]
    pub fn seen() -> Self {
        Self { mounts: mounts() }
    }

    /// Since then, nothing that belongs to `id` has come to stay. Other cases run at the same time, so only what bears the name counts.
    #[track_caller]
    pub fn assert_nothing_new(&self, id: &str, root: &Path) {
        let state: Vec<_> = fs::read_dir(root)
            .map(|entries| entries.flatten().map(|entry| entry.path()).collect())
            .unwrap_or_default();
        assert!(
            state.iter().all(|path| !path.ends_with(id)),
            "state is left: {state:?}"
        );
        let new: Vec<_> = mounts()
            .difference(&self.mounts)
            .filter(|mount| mount.contains(id))
            .cloned()
            .collect();
        assert!(new.is_empty(), "mounts are left: {new:?}");
        until_none("processes", || processes(id));
        until_none("cgroups", || cgroups(Path::new("/sys/fs/cgroup"), id));
    }
}

/// The kernel takes cgroups and zombies away a little later.
#[track_caller]
fn until_none(what: &str, look: impl Fn() -> Vec<String>) {
    let start = Instant::now();
    let mut found = look();
    while !found.is_empty() {
        assert!(start.elapsed() < PATIENCE, "{what} are left: {found:?}");
        wait::rest(LOOK_EVERY);
        found = look();
    }
}

fn mounts() -> BTreeSet<String> {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    table.lines().map(str::to_owned).collect()
}

/// Command lines of processes that name the container.
fn processes(id: &str) -> Vec<String> {
    let own = std::process::id().to_string();
    let entries = fs::read_dir("/proc").unwrap().flatten();
    entries
        .filter(|entry| entry.file_name().to_string_lossy() != own)
        .filter_map(|entry| fs::read(entry.path().join("cmdline")).ok())
        .map(|line| String::from_utf8_lossy(&line).replace('\0', " "))
        .filter(|line| line.split([' ', '/']).any(|word| word == id))
        .collect()
}

fn cgroups(below: &Path, id: &str) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(below).into_iter().flatten().flatten() {
        if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            continue;
        }
        if entry.file_name().to_string_lossy().contains(id) {
            found.push(entry.path().display().to_string());
        }
        found.extend(cgroups(&entry.path(), id));
    }
    found
}
