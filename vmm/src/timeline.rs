//! When the machine passed its milestones, and how many VM exits that took.

use std::sync::{Mutex, OnceLock, PoisonError};

use rustix::time::{ClockId, clock_gettime};
use vmm_api::TimelineMark;

use crate::statistics::ExitCounter;

/// A guest may mark milestones of its own; it may not make the list grow for ever.
const MARKS_MAX: usize = 64;

/// The marks so far.
#[derive(Debug, Default)]
pub struct Timeline {
    counters: OnceLock<Vec<ExitCounter>>,
    marks: Mutex<Vec<TimelineMark>>,
}

impl Timeline {
    /// From now on marks carry the sum of these counters. Only the first call counts.
    pub fn count_exits(&self, counters: Vec<ExitCounter>) {
        let _first = self.counters.set(counters);
    }

    /// Adds a mark; beyond [`MARKS_MAX`] nothing is added.
    pub fn mark(&self, name: &str) {
        let time = clock_gettime(ClockId::Monotonic);
        let at_ns = u64::try_from(time.tv_sec).unwrap_or(0) * 1_000_000_000
            + u64::try_from(time.tv_nsec).unwrap_or(0);
        let kvm_exits = self.kvm_exits();
        let mut marks = self.marks.lock().unwrap_or_else(PoisonError::into_inner);
        if marks.len() < MARKS_MAX {
            marks.push(TimelineMark {
                name: name.to_owned(),
                at_ns,
                kvm_exits,
            });
        }
    }

    /// The marks, oldest first.
    #[must_use]
    pub fn marks(&self) -> Vec<TimelineMark> {
        self.marks
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// VM exits of all vCPUs so far, where KVM counts them.
    #[must_use]
    pub fn kvm_exits(&self) -> Option<u64> {
        let counters = self.counters.get()?;
        if counters.is_empty() {
            return None;
        }
        counters.iter().map(ExitCounter::read).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_bounded_and_in_order() {
        let timeline = Timeline::default();
        for number in 0..2 * MARKS_MAX {
            timeline.mark(&number.to_string());
        }
        let marks = timeline.marks();
        assert_eq!(marks.len(), MARKS_MAX);
        assert_eq!(marks[1].name, "1");
        assert!(marks.is_sorted_by_key(|mark| mark.at_ns));
        assert_eq!(marks[0].kvm_exits, None);
    }
}
