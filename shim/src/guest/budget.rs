//! Lines in the log that a guest can cause at will: so many in a period, then silence, and with the next period their number.

use std::time::{Duration, Instant};

use super::limits::{LOG_LINES_MAX, LOG_PERIOD_S};

/// What may be written of one kind of line.
#[derive(Debug)]
pub(crate) struct LogBudget {
    began: Instant,
    written: u32,
    left_out: u64,
}

/// Whether a line may be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It may; so many have been left out before.
    Write { left_out: u64 },
    /// It may not.
    LeaveOut,
}

impl LogBudget {
    pub(crate) fn new() -> Self {
        Self {
            began: Instant::now(),
            written: 0,
            left_out: 0,
        }
    }

    /// Asks for a line.
    pub(crate) fn line(&mut self) -> Verdict {
        self.line_at(Instant::now())
    }

    fn line_at(&mut self, now: Instant) -> Verdict {
        if now.duration_since(self.began) >= Duration::from_secs(LOG_PERIOD_S) {
            self.began = now;
            self.written = 0;
        }
        if self.written >= LOG_LINES_MAX {
            self.left_out += 1;
            return Verdict::LeaveOut;
        }
        self.written += 1;
        Verdict::Write {
            left_out: std::mem::take(&mut self.left_out),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_a_few_lines_and_its_number() {
        let mut budget = LogBudget::new();
        let began = budget.began;
        for _ in 0..LOG_LINES_MAX {
            assert_eq!(budget.line_at(began), Verdict::Write { left_out: 0 });
        }
        for _ in 0..1_000 {
            assert_eq!(budget.line_at(began), Verdict::LeaveOut);
        }
        let later = began + Duration::from_secs(LOG_PERIOD_S);
        assert_eq!(budget.line_at(later), Verdict::Write { left_out: 1_000 });
        assert_eq!(budget.line_at(later), Verdict::Write { left_out: 0 });
    }
}
