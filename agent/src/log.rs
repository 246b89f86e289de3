//! The agent's log: short lines to stderr, which is the console of the machine.
//!
//! Containers can provoke lines, so that there is a bound: at most [`LINES_MAX`] per [`PERIOD`], and one line that says how many were
//! left out.

use std::error::Error;
use std::fmt::Arguments;
use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Lines per period: enough to tell what happened, too few to fill the host's ring of console output.
const LINES_MAX: u32 = 100;
const PERIOD: Duration = Duration::from_secs(10);

static DEBUG: AtomicBool = AtomicBool::new(false);
static BUDGET: Mutex<Budget> = Mutex::new(Budget {
    since: None,
    lines: 0,
    dropped: 0,
});

/// Lines written in the present period.
struct Budget {
    since: Option<Instant>,
    lines: u32,
    dropped: u32,
}

impl Budget {
    /// Whether one more line may be written, and how many were left out before it.
    fn admit(&mut self, now: Instant) -> Option<u32> {
        let mut missed = 0;
        if self
            .since
            .is_none_or(|since| now.duration_since(since) >= PERIOD)
        {
            missed = self.dropped;
            *self = Self {
                since: Some(now),
                lines: 0,
                dropped: 0,
            };
        }
        if self.lines == LINES_MAX {
            self.dropped = self.dropped.saturating_add(1);
            return None;
        }
        self.lines += 1;
        Some(missed)
    }
}

/// Lets debug lines through.
pub(crate) fn enable_debug() {
    DEBUG.store(true, Ordering::Relaxed);
}

pub(crate) fn debug_enabled() -> bool {
    DEBUG.load(Ordering::Relaxed)
}

/// Writes one line.
pub(crate) fn write(level: &str, line: Arguments<'_>) {
    let admitted = BUDGET
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .admit(Instant::now());
    let Some(missed) = admitted else { return };
    let mut stderr = std::io::stderr().lock();
    // Without a console there is nowhere to complain.
    if missed > 0 {
        let _ = writeln!(stderr, "husk-agent: warning: {missed} lines were left out");
    }
    let _ = writeln!(stderr, "husk-agent: {level}{line}");
}

/// An error with all that caused it, in one line.
pub(crate) fn line_of(error: &dyn Error) -> String {
    let mut line = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        line = format!("{line}: {error}");
        source = error.source();
    }
    line
}

/// Something that the agent can live with, but somebody should know.
macro_rules! log_warn {
    ($($line:tt)*) => { $crate::log::write("warning: ", format_args!($($line)*)) };
}

/// For whoever looks for a fault.
macro_rules! log_debug {
    ($($line:tt)*) => {
        if $crate::log::debug_enabled() {
            $crate::log::write("", format_args!($($line)*))
        }
    };
}

pub(crate) use {log_debug as debug, log_warn as warn};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_bounded_and_the_loss_is_told() {
        let mut budget = Budget {
            since: None,
            lines: 0,
            dropped: 0,
        };
        let start = Instant::now();
        for _ in 0..LINES_MAX {
            assert_eq!(budget.admit(start), Some(0));
        }
        assert_eq!(budget.admit(start), None);
        assert_eq!(budget.admit(start), None);
        assert_eq!(budget.admit(start + PERIOD), Some(2));
    }
}
