//! Which blocks of the region are plugged (pure).

use std::ops::Range;

/// One entry per block: what no driver has asked about is memory that the host has not given out yet.
#[derive(Debug)]
pub(super) struct Blocks {
    plugged: Vec<bool>,
    count: u64,
    /// Places where plugged and unplugged memory meet; before the first block and after the last
    /// one nothing is plugged.
    edges: u64,
}

/// What a range is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BlocksState {
    Plugged,
    Unplugged,
    Mixed,
}

impl Blocks {
    /// So many blocks, none plugged.
    pub(super) fn new(count: u64) -> Self {
        // A region that this machine can address has no more blocks than it has addresses.
        let count = usize::try_from(count).unwrap_or(usize::MAX);
        Self {
            plugged: vec![false; count],
            count: 0,
            edges: 0,
        }
    }

    /// How many there are.
    pub(super) fn count(&self) -> u64 {
        self.plugged.len() as u64
    }

    /// How many are plugged.
    pub(super) fn plugged_count(&self) -> u64 {
        self.count
    }

    /// What is plugged, as ranges in ascending order.
    pub(super) fn plugged(&self) -> Vec<Range<u64>> {
        let mut ranges: Vec<Range<u64>> = Vec::new();
        for (block, _) in (0..).zip(&self.plugged).filter(|(_, plugged)| **plugged) {
            match ranges.last_mut() {
                Some(last) if last.end == block => last.end = block + 1,
                _ => ranges.push(block..block + 1),
            }
        }
        ranges
    }

    /// Whether the range exists, and is all plugged or all unplugged, as `wanted`.
    pub(super) fn are(&self, range: &Range<u64>, wanted: bool) -> bool {
        self.slice(range)
            .is_some_and(|blocks| blocks.iter().all(|plugged| *plugged == wanted))
    }

    /// What the range is; None when there are no such blocks.
    pub(super) fn state(&self, range: &Range<u64>) -> Option<BlocksState> {
        let blocks = self.slice(range)?;
        let plugged = blocks.iter().filter(|plugged| **plugged).count();
        Some(match plugged {
            0 => BlocksState::Unplugged,
            all if all == blocks.len() => BlocksState::Plugged,
            _ => BlocksState::Mixed,
        })
    }

    /// Into how many parts, plugged and unplugged and the unplugged outside, the region would be
    /// cut if the range, which [`Blocks::are`] all something else, were plugged or unplugged.
    pub(super) fn parts_with(&self, range: &Range<u64>, plugged: bool) -> u64 {
        let before = range
            .start
            .checked_sub(1)
            .is_some_and(|block| self.at(block));
        let after = self.at(range.end);
        let differ = |from: bool| u64::from(before != from) + u64::from(after != from);
        self.edges + differ(plugged) - differ(!plugged) + 1
    }

    /// Makes the range, which [`Blocks::are`] all something else, plugged or unplugged.
    pub(super) fn set(&mut self, range: &Range<u64>, plugged: bool) {
        self.edges = self.parts_with(range, plugged) - 1;
        let blocks = index(range).and_then(|range| self.plugged.get_mut(range));
        for block in blocks.into_iter().flatten() {
            if *block != plugged {
                *block = plugged;
                self.count = if plugged {
                    self.count + 1
                } else {
                    self.count - 1
                };
            }
        }
    }

    fn at(&self, block: u64) -> bool {
        let block = usize::try_from(block).ok();
        block.and_then(|block| self.plugged.get(block)) == Some(&true)
    }

    fn slice(&self, range: &Range<u64>) -> Option<&[bool]> {
        self.plugged.get(index(range)?)
    }
}

fn index(range: &Range<u64>) -> Option<Range<usize>> {
    Some(usize::try_from(range.start).ok()?..usize::try_from(range.end).ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_counted_and_listed() {
        let mut blocks = Blocks::new(10);
        blocks.set(&(1..4), true);
        blocks.set(&(6..7), true);
        assert_eq!((blocks.count(), blocks.plugged_count()), (10, 4));
        assert_eq!(blocks.plugged(), [1..4, 6..7]);
        blocks.set(&(2..3), false);
        assert_eq!(blocks.plugged(), [1..2, 3..4, 6..7]);
        assert_eq!(blocks.plugged_count(), 3);
    }

    #[test]
    fn ranges_are_one_thing_or_mixed_or_not_there() {
        let mut blocks = Blocks::new(10);
        blocks.set(&(0..5), true);
        assert!(blocks.are(&(0..5), true) && !blocks.are(&(0..6), true));
        assert!(blocks.are(&(5..10), false) && !blocks.are(&(5..11), false));
        assert_eq!(blocks.state(&(0..5)), Some(BlocksState::Plugged));
        assert_eq!(blocks.state(&(4..6)), Some(BlocksState::Mixed));
        assert_eq!(blocks.state(&(5..6)), Some(BlocksState::Unplugged));
        assert_eq!(blocks.state(&(9..11)), None);
        assert_eq!(blocks.state(&(u64::MAX - 1..u64::MAX)), None);
    }

    #[test]
    fn parts_are_counted_as_they_are() {
        let mut blocks = Blocks::new(6);
        for (range, plugged, parts) in [
            (0..1, true, 3),
            (5..6, true, 5),
            (2..3, true, 7),
            (3..5, true, 5),
            (1..2, true, 3),
            (0..3, false, 3),
            (3..6, false, 1),
            (1..5, true, 3),
        ] {
            assert_eq!(blocks.parts_with(&range, plugged), parts, "{range:?}");
            blocks.set(&range, plugged);
            assert_eq!(blocks.edges + 1, parts, "{range:?}");
        }
    }
}
