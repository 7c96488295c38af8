//! What each workgroup of a dispatch is estimated to do, so that a long dispatch can be cut where it should be.

use crate::blocks::KEY_TILE;
use crate::device::DeviceClass;

/// Workgroups of a dispatch and their work: floating-point operations, with all else in terms of these. Only the
/// measured rate says how long that takes; what counts is that the parts of one problem compare.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Work {
    pub(crate) workgroups: u64,
    /// Of every workgroup.
    each: u64,
    /// Of the pairs that workgroups look at.
    pairs: Option<Pairs>,
}

/// Tiles of rows, each with the keys that some row of it sees; one head after the other.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Pairs {
    /// Work of a pair.
    pub(crate) each: u64,
    /// Rows of a tile.
    pub(crate) block: u32,
    /// Tiles of a head.
    pub(crate) tiles: u32,
    /// Which workgroups share a tile.
    pub(crate) across: Across,
    /// The last rows come first.
    pub(crate) last_first: bool,
    pub(crate) seen: Seen,
}

/// How the workgroups of one tile of rows share it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Across {
    /// By keys: this many each, of so many.
    Keys(u32, u32),
    /// By columns of out: each of so many looks at every pair.
    Columns(u64),
}

/// The keys that row 0 sees, from the first to before the last; row i sees those i further on. Within `0..kv_len`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Seen {
    pub(crate) begin: i64,
    pub(crate) end: i64,
    pub(crate) kv_len: u32,
}

/// Work of starting a workgroup and of its part of everything that is done once.
const START: u64 = 4096;
/// Work of reading or writing one element.
pub(crate) const ELEMENT: u64 = 4;
/// Work of a pair's softmax: score, maximum, exponential, sum.
pub(crate) const SOFTMAX: u64 = 32;
/// Work of a pair's mask, bias and the caller's functions.
pub(crate) const CHANGES: u64 = 32;

/// Keys that a workgroup may walk where each takes so much work of it: nothing can cut it.
pub(crate) fn most_keys(class: DeviceClass, each: u64) -> u32 {
    let (longest, most) = match class {
        // A core does it in a fifth of a second. Old drivers end a shader after 65,535 rounds of all its loops,
        // whatever is left to do, and 16 keys take six.
        DeviceClass::Software => (1 << 33, 1 << 17),
        // A slow GPU's core does it in a tenth of a second.
        _ => (1_u64 << 32, u32::MAX),
    };
    let tiles = longest / each.max(1) / u64::from(KEY_TILE);
    u32::try_from(tiles.max(1)).unwrap_or(u32::MAX).saturating_mul(KEY_TILE).min(most)
}

impl Work {
    /// The same for every workgroup.
    pub(crate) fn even(workgroups: u64, each: u64) -> Self {
        Self { workgroups, each: each.saturating_add(START), pairs: None }
    }

    /// The same for every workgroup, and its pairs.
    pub(crate) fn of_pairs(workgroups: u64, each: u64, pairs: Pairs) -> Self {
        Self { pairs: Some(pairs), ..Self::even(workgroups, each) }
    }

    /// Of all workgroups.
    pub(crate) fn total(&self) -> u128 {
        self.before(self.workgroups)
    }

    /// Of all workgroups before `id`.
    pub(crate) fn before(&self, id: u64) -> u128 {
        let pairs = self.pairs.map_or(0, |pairs| u128::from(pairs.each) * pairs.before(id));
        u128::from(self.each) * u128::from(id) + pairs
    }

    /// Where a part that starts at workgroup `first` ends if it may take `limit`; at `first` if that is too little
    /// for one workgroup.
    pub(crate) fn end(&self, first: u64, limit: u128) -> u64 {
        let most = self.before(first).saturating_add(limit);
        let (mut end, mut beyond) = (first, self.workgroups + 1);
        while beyond - end > 1 {
            let middle = end + (beyond - end) / 2;
            if self.before(middle) <= most { end = middle } else { beyond = middle }
        }
        end
    }
}

impl Pairs {
    /// Pairs that the workgroups before `id` look at.
    fn before(&self, id: u64) -> u128 {
        let (sharing, times) = match self.across {
            Across::Keys(_, tiles) => (u64::from(tiles), 1),
            Across::Columns(n) => (n, n),
        };
        let tiles = u64::from(self.tiles);
        let (head, tile) = (id / sharing / tiles, id / sharing % tiles);
        let whole = u128::from(head) * self.keys(tiles) + self.keys_in_order(tile);
        let of_tile = if self.last_first { tiles - 1 - tile } else { tile };
        let part = match self.across {
            Across::Keys(n, _) => {
                let [begin, end] = self.tile_range(of_tile);
                let keys = i128::from(id % sharing) * i128::from(n);
                unsigned(keys.clamp(begin, end) - begin)
            }
            Across::Columns(_) => {
                let [begin, end] = self.tile_range(of_tile);
                u128::from(id % sharing) * unsigned(end - begin)
            }
        };
        (whole * u128::from(times) + part) * u128::from(self.block)
    }

    /// Keys of the first `tiles` tiles in the order of workgroups.
    fn keys_in_order(&self, tiles: u64) -> u128 {
        let all = u64::from(self.tiles);
        if self.last_first { self.keys(all) - self.keys(all - tiles) } else { self.keys(tiles) }
    }

    /// Keys of the first `tiles` tiles.
    fn keys(&self, tiles: u64) -> u128 {
        let [begin, end] = self.ends();
        unsigned(self.sum(end, tiles) - self.sum(begin, tiles))
    }

    /// Keys that some row of a tile sees.
    fn tile_range(&self, tile: u64) -> [i128; 2] {
        let first = i128::from(tile) * i128::from(self.block);
        self.ends().map(|end| (end + first).clamp(0, self.seen.kv_len.into()))
    }

    /// Of the first tile, not yet within the keys that there are.
    fn ends(&self) -> [i128; 2] {
        let last_row = i128::from(self.block) - 1;
        let begin = i128::from(self.seen.begin);
        [begin, (i128::from(self.seen.end) + last_row).max(begin)]
    }

    /// The sum over so many tiles of an end that moves on by a tile's rows, within the keys that there are.
    fn sum(&self, end: i128, tiles: u64) -> i128 {
        let (n, step, kv_len) =
            (i128::from(tiles), i128::from(self.block), self.seen.kv_len.into());
        let tiles_until = |key: i128| ((key - end + step - 1).div_euclid(step)).clamp(0, n);
        let (from, to) = (tiles_until(0), tiles_until(kv_len));
        let rising = to - from;
        rising * end + step * rising * (from + to - 1) / 2 + (n - to) * kv_len
    }
}

fn unsigned(n: i128) -> u128 {
    u128::try_from(n).expect("an end is not before its beginning")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pairs of one workgroup, counted.
    fn counted(pairs: &Pairs, id: u64) -> u128 {
        let sharing = match pairs.across {
            Across::Keys(_, tiles) => tiles.into(),
            Across::Columns(n) => n,
        };
        let tile = id / sharing % u64::from(pairs.tiles);
        let tile = if pairs.last_first { u64::from(pairs.tiles) - 1 - tile } else { tile };
        let rows = (0..u64::from(pairs.block)).map(|row| tile * u64::from(pairs.block) + row);
        let sees = |key: i64| {
            let last = rows.clone().next_back().expect("a row");
            let [first, last] = [rows.clone().next().expect("a row"), last]
                .map(|row| i64::try_from(row).expect("small"));
            key >= pairs.seen.begin + first && key < pairs.seen.end + last
        };
        let keys: Box<dyn Iterator<Item = i64>> = match pairs.across {
            Across::Keys(n, _) => {
                let first = i64::try_from(id % sharing).expect("small") * i64::from(n);
                Box::new(first..(first + i64::from(n)).min(pairs.seen.kv_len.into()))
            }
            Across::Columns(_) => Box::new(0..pairs.seen.kv_len.into()),
        };
        keys.filter(|key| sees(*key)).count() as u128 * u128::from(pairs.block)
    }

    fn cases() -> Vec<Pairs> {
        let mut cases = Vec::new();
        for (begin, end) in [(-99, 99), (-99, 1), (-4, 1), (-3, 3), (-99, -7), (5, 8), (-20, -12)] {
            for (block, tiles, kv_len) in [(1, 9, 7), (4, 5, 13), (3, 2, 40), (8, 1, 1)] {
                for across in [Across::Columns(1), Across::Columns(3), Across::Keys(4, 10)] {
                    for last_first in [false, true] {
                        let seen = Seen { begin, end, kv_len };
                        cases.push(Pairs { each: 1, block, tiles, across, last_first, seen });
                    }
                }
            }
        }
        cases
    }

    #[test]
    fn the_closed_form_counts_the_pairs_of_every_workgroup() {
        for pairs in cases() {
            let mut sum = 0;
            for id in 0..100 {
                assert_eq!(pairs.before(id), sum, "{id} of {pairs:?}");
                sum += counted(&pairs, id);
            }
        }
    }

    #[test]
    fn parts_are_as_long_as_they_may_be() {
        for pairs in cases() {
            let work = Work { workgroups: 100, each: 3, pairs: Some(pairs) };
            for limit in [0, 2, 3, 50, 1000, u128::MAX] {
                for first in [0, 1, 57, 99] {
                    let end = work.end(first, limit);
                    let of = |end| work.before(end) - work.before(first);
                    assert!(end >= first && of(end) <= limit, "{work:?}");
                    assert!(end == 100 || of(end + 1) > limit, "{work:?}");
                }
            }
        }
    }

    #[test]
    fn nothing_overflows() {
        let seen = Seen { begin: -(1 << 40), end: 1 << 40, kv_len: 1 << 29 };
        let across = Across::Columns(8);
        let pairs =
            Pairs { each: 1 << 20, block: 64, tiles: 1 << 23, across, last_first: true, seen };
        let work = Work::of_pairs(u32::MAX.into(), 1 << 40, pairs);
        assert!(work.total() > u64::MAX.into());
        assert_eq!(work.end(0, u128::MAX), u64::from(u32::MAX));
    }
}
