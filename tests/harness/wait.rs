//! Waiting for what others do, without taking the time of the only CPU from them. Each wait has a
//! deadline, and names what did not come.

use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

/// After this a case fails: long enough for a software-emulated host that is busy.
pub const DEADLINE: Duration = Duration::from_secs(900);

/// Between two looks at what nobody tells of, as the end of a cgroup.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Waits until `seen` says so, where there is no event to wait for.
#[track_caller]
pub fn until(what: &str, mut seen: impl FnMut() -> bool) {
    let start = Instant::now();
    while !seen() {
        assert!(start.elapsed() < DEADLINE, "{what}: not in {DEADLINE:?}");
        rest(LOOK_EVERY);
    }
}

/// Waits until `seen` says so, looking whenever something happens to `path`: to a file, or to what a
/// folder has directly in it.
#[track_caller]
pub fn until_change(what: &str, path: &Path, mut seen: impl FnMut() -> bool) {
    let changes = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK).unwrap();
    let all = WatchFlags::CREATE
        | WatchFlags::MODIFY
        | WatchFlags::MOVED_TO
        | WatchFlags::MOVED_FROM
        | WatchFlags::DELETE
        | WatchFlags::DELETE_SELF;
    inotify::add_watch(&changes, path, all).unwrap();
    let start = Instant::now();
    let mut events = [0; 4096];
    while !seen() {
        let left = DEADLINE.checked_sub(start.elapsed());
        let left = left.unwrap_or_else(|| panic!("{what}: not in {DEADLINE:?}"));
        readable(&changes, left);
        // What happened does not matter, only that the next poll waits for what happens then.
        while !matches!(rustix::io::read(&changes, &mut events), Err(Errno::AGAIN)) {}
    }
}

/// Waits for the end of a process, which need not be a child.
#[track_caller]
pub fn until_end(pid: Pid) {
    assert!(
        ends_within(pid, DEADLINE),
        "process {pid:?}: no end in {DEADLINE:?}"
    );
}

/// Whether a process, which need not be a child, ends within that time.
#[must_use]
pub fn ends_within(pid: Pid, time: Duration) -> bool {
    match pidfd_open(pid, PidfdFlags::empty()) {
        Ok(process) => readable(&process, time),
        // INVAL: its last part is just being removed, or its number is a thread's by now.
        Err(Errno::SRCH | Errno::INVAL) => true,
        Err(error) => panic!("process {pid:?}: {error}"),
    }
}

/// Leaves the CPU to others: before the next look at what nobody tells of, or to be slow.
#[expect(
    clippy::disallowed_methods,
    reason = "there is no event, and whoever calls has a deadline"
)]
pub fn rest(time: Duration) {
    thread::sleep(time);
}

/// Whether it can be read within that time.
fn readable(fd: &impl std::os::fd::AsFd, within: Duration) -> bool {
    let within = Timespec::try_from(within).unwrap();
    loop {
        match poll(&mut [PollFd::new(fd, PollFlags::IN)], Some(&within)) {
            Ok(count) => return count > 0,
            Err(Errno::INTR) => {}
            Err(error) => panic!("poll: {error}"),
        }
    }
}
