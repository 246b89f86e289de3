//! A sandbox that nothing happens to but what its users do, for as long as the soak takes: what it has
//! open, and how much memory its processes have on the host, does not grow.

use std::fs;
use std::time::{Duration, Instant};

use harness::{Bundle, Runtime, wait};
use rustix::process::Pid;
use serde_json::json;

use crate::ground::Ground;

/// For descriptors of calls that have ended to be closed.
const PATIENCE: Duration = Duration::from_secs(60);
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// What an allocator may keep more than after the first cycle, however many follow.
const GROWTH_MAX_KB: u64 = 1024;

/// A run of writable mappings as long as this is the guest's memory.
const GUEST_MIN: u64 = 64 << 20;

/// See the module.
#[derive(Debug)]
pub(crate) struct Survivor<'g> {
    ground: &'g Ground,
    id: String,
    /// Of the supervisor and of the VMM.
    processes: [Pid; 2],
    /// After the first cycle.
    at_first: Option<[Figures; 2]>,
    _bundle: Bundle,
}

#[derive(Clone, Copy, Debug)]
struct Figures {
    descriptors: usize,
    threads: usize,
    own_kb: u64,
}

impl<'g> Survivor<'g> {
    pub(crate) fn started(ground: &'g Ground) -> Self {
        let bundle = Bundle::busybox().args(&["sleep", "1000000"]).with(
            "/annotations",
            json!({"io.husk.memory": "128", "io.husk.max-memory": "256"}),
        );
        bundle.write();
        let id = Runtime::new_id();
        let path = bundle.path().to_str().unwrap();
        ground
            .call(&["create", "--bundle", path, &id])
            .assert_done();
        ground.call(&["start", &id]).assert_done();
        let process = |role| ground.process(&id, role).unwrap();
        Self {
            ground,
            processes: ["supervisor", "vmm"].map(process),
            id,
            at_first: None,
            _bundle: bundle,
        }
    }

    /// It does what it is asked, and is no larger than after the first cycle.
    pub(crate) fn assert_flat(&mut self) {
        let id = self.id.as_str();
        let done = |words: &[&str]| {
            self.ground.call(words).assert_done();
        };
        done(&["exec", id, "true"]);
        done(&["update", "--pids-limit", "99", id]);
        done(&["events", "--stats", id]);
        done(&["pause", id]);
        done(&["resume", id]);
        done(&["ps", id]);
        let start = Instant::now();
        loop {
            let now = self.processes.map(Figures::of);
            let first = *self.at_first.get_or_insert(now);
            let grown = |(now, first): (Figures, Figures)| {
                now.descriptors > first.descriptors
                    || now.threads > first.threads
                    || now.own_kb > first.own_kb + GROWTH_MAX_KB
            };
            if !now.into_iter().zip(first).any(grown) {
                println!("  supervisor {}, VMM {}", now[0], now[1]);
                return;
            }
            assert!(
                start.elapsed() < PATIENCE,
                "grown from {first:?} to {now:?}"
            );
            wait::rest(LOOK_EVERY);
        }
    }

    pub(crate) fn end(&self) {
        self.ground.call(&["kill", &self.id, "KILL"]).assert_done();
        let words = ["delete", "--force", &self.id];
        self.ground.call(&words).assert_done();
    }
}

impl Drop for Survivor<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.ground.put_away(&self.id);
        }
    }
}

impl Figures {
    fn of(pid: Pid) -> Self {
        let path = |name: &str| format!("/proc/{}/{name}", pid.as_raw_nonzero());
        let count = |name| fs::read_dir(path(name)).map_or(0, Iterator::count);
        let smaps = fs::read_to_string(path("smaps")).unwrap_or_default();
        let descriptors = count("fd");
        assert_ne!(descriptors, 0, "the survivor has ended");
        Self {
            descriptors,
            threads: count("task"),
            own_kb: own_kb(&smaps),
        }
    }
}

impl std::fmt::Display for Figures {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            descriptors,
            threads,
            own_kb,
        } = self;
        write!(
            out,
            "{own_kb} kB, {descriptors} descriptors, {threads} threads"
        )
    }
}

/// The share of memory (PSS) of all that is not the guest's, which is a long run of adjoining mappings
/// with the same rights.
fn own_kb(smaps: &str) -> u64 {
    let (mut own, mut run, mut length) = (0, 0, 0);
    let mut last = (String::new(), String::new());
    for line in smaps.lines() {
        let mut words = line.split_whitespace();
        let (Some(first), Some(second)) = (words.next(), words.next()) else {
            continue;
        };
        if let Some((from, to)) = first.split_once('-') {
            if (from, second) != (last.0.as_str(), last.1.as_str()) {
                own += if length < GUEST_MIN { run } else { 0 };
                (run, length) = (0, 0);
            }
            last = (to.to_owned(), second.to_owned());
            let number = |text| u64::from_str_radix(text, 16).unwrap_or(0);
            length += number(to) - number(from);
        } else if first == "Pss:" {
            run += second.parse().unwrap_or(0);
        }
    }
    own + if length < GUEST_MIN { run } else { 0 }
}
