//! The clock.

use std::process::Command;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use harness::wait::until;
use harness::{Background, Bundle, Runtime};

/// How far the host's clock is set ahead.
const JUMP: Duration = Duration::from_secs(3600);
/// A guest is asked by a command, which takes a while on a host that is emulated.
const NEAR_S: u64 = 60;

/// The host's clock, ahead until this is dropped.
struct Ahead {
    from: SystemTime,
    since: Instant,
}

impl Ahead {
    fn new() -> Self {
        let ahead = Self {
            from: SystemTime::now(),
            since: Instant::now(),
        };
        set(ahead.from + JUMP);
        ahead
    }
}

impl Drop for Ahead {
    fn drop(&mut self) {
        set(self.from + self.since.elapsed());
    }
}

fn set(to: SystemTime) {
    let seconds = to.duration_since(UNIX_EPOCH).unwrap().as_secs_f64();
    let status = Command::new("date")
        .args(["--set", &format!("@{seconds:.3}")])
        .output();
    assert!(status.unwrap().status.success());
}

#[test]
fn it_follows_the_hosts_when_that_is_set() {
    let runtime = Runtime::from_environment();
    let container = Background::started(&runtime, Bundle::busybox().args(&["sleep", "1000000"]));
    let is_near = || {
        let said = container.exec(&["date", "+%s"]).text();
        let guest: u64 = said.trim().parse().unwrap();
        let host = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        host.as_secs().abs_diff(guest) < NEAR_S
    };
    assert!(is_near(), "the clock is the host's at the start");
    let ahead = Ahead::new();
    until("the container's clock goes ahead", is_near);
    container.call(&["pause"]).assert_status(0);
    drop(ahead);
    container.call(&["resume"]).assert_status(0);
    until(
        "the clock of a container that was paused goes back",
        is_near,
    );
    container.remove();
}
