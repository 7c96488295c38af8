//! Which keys each row of a block sees.

use super::attend::LANES;
use std::ops::Range;

/// Which keys each row of a block sees, one lane a row.
pub(super) struct Band {
    /// First key that a lane sees.
    pub(super) start: Vec<u32>,
    /// Keys that a lane sees; none in the lanes past the last row.
    pub(super) count: Vec<u32>,
}

impl Band {
    pub(super) fn new(rows: impl ExactSizeIterator<Item = Range<u32>>) -> Self {
        // A lone row (decode) is a matrix-vector product, which padding would make a slower one.
        let lanes = if rows.len() == 1 { 1 } else { rows.len().next_multiple_of(LANES) };
        let (mut start, mut count) = (vec![0; lanes], vec![0; lanes]);
        for (lane, visible) in rows.enumerate() {
            (start[lane], count[lane]) = (visible.start, visible.end - visible.start);
        }
        Self { start, count }
    }

    pub(super) fn lanes(&self) -> usize {
        self.start.len()
    }

    /// From the first key that some row sees to the last.
    pub(super) fn seen(&self) -> Range<u32> {
        let lanes = || self.start.iter().zip(&self.count).filter(|(_, count)| **count > 0);
        let start = lanes().map(|(start, _)| *start).min();
        let end = lanes().map(|(start, count)| start + count).max();
        start.unwrap_or(0)..end.unwrap_or(0)
    }

    /// Keys of a block that a lane sees, counted from the block's first.
    pub(super) fn visible(&self, lane: usize, block: &Range<u32>) -> Range<usize> {
        let in_block = |key: u32| (key.clamp(block.start, block.end) - block.start) as usize;
        let start = self.start[lane];
        in_block(start)..in_block(start + self.count[lane])
    }

    /// Of each lane, whether it sees all keys of a block.
    pub(super) fn whole(&self, first: u32, keys: usize) -> Vec<bool> {
        let end = u64::from(first) + keys as u64;
        let sees_all = |(start, count): (&u32, &u32)| {
            *start <= first && u64::from(*start) + u64::from(*count) >= end
        };
        self.start.iter().zip(&self.count).map(sees_all).collect()
    }
}
