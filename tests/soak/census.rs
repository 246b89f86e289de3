//! What there is on the host that a sandbox could leave: processes, virtual machines, mounts, cgroups,
//! sockets, files.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use harness::wait;

use crate::fault;
use crate::ground::Ground;

/// How long what is about to vanish may take, and how often it is looked at.
const PATIENCE: Duration = Duration::from_secs(60);
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Where files of husk's, or of what it is made of, could be.
const PLACES: [&str; 3] = ["/run", "/dev/shm", "/sys/kernel/debug/kvm"];

/// The parent of all threads of the kernel.
const KTHREADD: &str = "2";

/// One line for each thing there is.
#[derive(Debug)]
pub(crate) struct Census(BTreeSet<String>);

impl Census {
    pub(crate) fn taken(ground: &Ground) -> Self {
        let mut all = BTreeSet::new();
        processes(&mut all);
        mounts(&mut all);
        sockets(&mut all);
        below(Path::new("/sys/fs/cgroup"), "cgroup", &mut all);
        for place in PLACES {
            below(Path::new(place), "file", &mut all);
        }
        below(&ground.root(), "state", &mut all);
        Self(all)
    }

    /// All that is there now was there then.
    pub(crate) fn assert_nothing_new(&self, ground: &Ground) {
        let start = Instant::now();
        loop {
            fault::remove_group();
            let now = Self::taken(ground);
            let new: Vec<_> = now.0.difference(&self.0).collect();
            if new.is_empty() {
                return;
            }
            assert!(start.elapsed() < PATIENCE, "left: {new:#?}");
            wait::rest(LOOK_EVERY);
        }
    }
}

fn processes(all: &mut BTreeSet<String>) {
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let Ok(stat) = fs::read_to_string(entry.path().join("stat")) else {
            continue;
        };
        // PID (NAME) STATE PARENT …
        let Some((name, fields)) = stat.rsplit_once(") ") else {
            continue;
        };
        let parent = fields.split(' ').nth(1);
        if parent != Some(KTHREADD) && !name.starts_with("2 (") {
            all.insert(format!("process {name})"));
        }
    }
}

fn mounts(all: &mut BTreeSet<String>) {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    all.extend(table.lines().map(|line| format!("mount {line}")));
}

fn sockets(all: &mut BTreeSet<String>) {
    let table = fs::read_to_string("/proc/net/unix").unwrap();
    let paths = table
        .lines()
        .filter_map(|line| line.split_whitespace().nth(7));
    all.extend(paths.map(|path| format!("socket {path}")));
}

/// Folders and files. The files of a cgroup come and go with it, and there are many.
fn below(path: &Path, what: &str, all: &mut BTreeSet<String>) {
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
        if is_folder || what != "cgroup" {
            all.insert(format!("{what} {}", entry.path().display()));
        }
        if is_folder {
            below(&entry.path(), what, all);
        }
    }
}
