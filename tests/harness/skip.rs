//! A case that the runtime under test does not have: it is counted as skipped, and not as passed.
//!
//! Each case is a process of its own, which says why and ends with a status that `hack/lib/run-cases`
//! knows.

use std::io::Write as _;
use std::process;

use crate::Runtime;

/// The exit status that says so, as automake's tests do.
const STATUS: i32 = 77;

/// Ends the case here. It comes first in a case: what was made before is not removed.
#[expect(clippy::exit, reason = "the status of the process is the message")]
pub fn skip(reason: &str) -> ! {
    // Not by `println!`, which the test's own harness keeps until the test has ended.
    let _ = writeln!(std::io::stdout(), "\nskipped: {reason}");
    process::exit(STATUS)
}

/// Skips the case unless husk is under test.
pub fn only_husk(reason: &str) {
    if !Runtime::is_husk() {
        skip(reason);
    }
}
