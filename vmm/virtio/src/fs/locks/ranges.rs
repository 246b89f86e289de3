//! The ranges of one file that one owner has locked. Pure.
//!
//! They lie in order and apart, and neighbours of one kind are one range, as the host's kernel keeps
//! them: so their number is that of its own records.

/// What a lock lets others do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::fs) enum Kind {
    /// Others may have one of this kind too.
    Shared,
    Exclusive,
}

/// A part of a file, both ends in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::fs) struct Range {
    pub(in crate::fs) start: u64,
    pub(in crate::fs) end: u64,
}

impl Range {
    fn overlaps(self, other: Self) -> bool {
        self.start <= other.end && other.start <= self.end
    }

    fn touches(self, other: Self) -> bool {
        self.start <= other.end.saturating_add(1) && other.start <= self.end.saturating_add(1)
    }
}

/// All of one owner.
#[derive(Clone, Debug, Default)]
pub(super) struct Ranges(Vec<(Range, Kind)>);

impl Ranges {
    pub(super) fn count(&self) -> usize {
        self.0.len()
    }

    /// Whether this is one of them, as the host's kernel has it too.
    pub(super) fn has(&self, range: Range, kind: Kind) -> bool {
        self.0.contains(&(range, kind))
    }

    /// What there is once `range` is locked, or with no kind unlocked.
    pub(super) fn after(&self, mut range: Range, kind: Option<Kind>) -> Self {
        let mut parts = Vec::with_capacity(self.0.len() + 2);
        for (held, of) in &self.0 {
            if Some(*of) == kind && held.touches(range) {
                range.start = range.start.min(held.start);
                range.end = range.end.max(held.end);
            } else if held.overlaps(range) {
                if held.start < range.start {
                    let end = range.start - 1;
                    parts.push((Range { end, ..*held }, *of));
                }
                if held.end > range.end {
                    let start = range.end + 1;
                    parts.push((Range { start, ..*held }, *of));
                }
            } else {
                parts.push((*held, *of));
            }
        }
        if let Some(kind) = kind {
            parts.push((range, kind));
        }
        parts.sort_unstable_by_key(|(range, _)| range.start);
        Self(parts)
    }
}

#[cfg(test)]
mod tests {
    use super::Kind::{Exclusive, Shared};
    use super::*;

    fn locked(steps: &[(u64, u64, Option<Kind>)]) -> Vec<(u64, u64, Kind)> {
        let mut ranges = Ranges::default();
        for (start, end, kind) in steps {
            let (start, end) = (*start, *end);
            ranges = ranges.after(Range { start, end }, *kind);
        }
        let parts = ranges.0.into_iter();
        parts
            .map(|(range, kind)| (range.start, range.end, kind))
            .collect()
    }

    #[test]
    fn neighbours_of_a_kind_are_one() {
        let (shared, exclusive) = (Some(Shared), Some(Exclusive));
        assert_eq!(
            locked(&[(0, 9, shared), (20, 29, shared), (10, 19, shared)]),
            [(0, 29, Shared)]
        );
        assert_eq!(
            locked(&[(0, 9, shared), (10, 19, exclusive)]),
            [(0, 9, Shared), (10, 19, Exclusive)]
        );
        let last = u64::MAX;
        assert_eq!(
            locked(&[(last, last, shared), (0, 4, shared), (3, last, shared)]),
            [(0, last, Shared)]
        );
    }

    #[test]
    fn the_last_word_counts_and_what_is_around_it_stays() {
        assert_eq!(
            locked(&[(0, 99, Some(Shared)), (40, 49, None)]),
            [(0, 39, Shared), (50, 99, Shared)]
        );
        assert_eq!(
            locked(&[(0, 99, Some(Shared)), (40, 49, Some(Exclusive))]),
            [(0, 39, Shared), (40, 49, Exclusive), (50, 99, Shared)]
        );
        assert_eq!(
            locked(&[(5, 9, Some(Exclusive)), (0, 20, Some(Shared))]),
            [(0, 20, Shared)]
        );
        assert_eq!(locked(&[(5, 9, Some(Shared)), (0, u64::MAX, None)]), []);
    }
}
