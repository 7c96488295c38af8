//! How many keys of a range that one workgroup walks, where there are fewer workgroups than a device could run.

use crate::blocks::KEY_TILE;

/// What a launch has without splits.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Launch {
    /// Workgroups that walk all keys.
    pub(crate) workgroups: u64,
    pub(crate) kv_len: u32,
    /// Lengths are in a buffer, and may be much below `kv_len`.
    pub(crate) growing: bool,
}

/// Workgroups that keep a core busy while some wait for memory.
const PER_CORE: u64 = 4;
/// Fewer keys do not repay a partial result and its merge.
const FEWEST_KEYS: u32 = 256;
/// More partial results take longer to merge than they save.
const MOST_SPLITS: u32 = 128;
/// Lengths that grow are planned for as if this part of the capacity were used: ranges that no key is in cost little.
const GROWING_PART: u32 = 16;

/// Keys of a range, a multiple of [`KEY_TILE`]; all of them where splitting does not pay. See
/// [Flash-Decoding](https://crfm.stanford.edu/2023/10/12/flashdecoding.html).
pub(crate) fn range_keys(launch: Launch, cores: u32) -> u32 {
    let Launch { workgroups, kv_len, growing } = launch;
    let likely = if growing { kv_len.div_ceil(GROWING_PART) } else { kv_len };
    if is_busy(workgroups, cores) {
        return range_of(kv_len, kv_len);
    }
    let n = splits(workgroups, likely, cores);
    range_of(kv_len, likely.div_ceil(n).max(kv_len.div_ceil(MOST_SPLITS)))
}

/// Keys of each of so many ranges.
pub(crate) fn keys_of(kv_len: u32, splits: u32) -> u32 {
    range_of(kv_len, kv_len.div_ceil(splits.max(1)))
}

fn range_of(kv_len: u32, keys: u32) -> u32 {
    keys.max(1).next_multiple_of(KEY_TILE).min(kv_len.next_multiple_of(KEY_TILE))
}

fn slots(cores: u32) -> u64 {
    PER_CORE * u64::from(cores.max(1))
}

/// Whether four of five slots are taken without splits.
fn is_busy(workgroups: u64, cores: u32) -> bool {
    workgroups * 5 >= slots(cores) * 4
}

/// The fewest ranges with which the last round of workgroups is nearly as full as it can be.
fn splits(workgroups: u64, keys: u32, cores: u32) -> u32 {
    let slots = slots(cores);
    let most = (keys / FEWEST_KEYS).clamp(1, MOST_SPLITS);
    // Thousandths of the slots that are full, over all rounds.
    let full = |n: u32| {
        let total = workgroups.max(1) * u64::from(n);
        1000 * total / (total.div_ceil(slots) * slots)
    };
    let best = (1..=most).map(full).max().unwrap_or(0);
    (1..=most).find(|n| full(*n) * 100 >= best * 85).unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(workgroups: u64, kv_len: u32, growing: bool, cores: u32) -> u32 {
        range_keys(Launch { workgroups, kv_len, growing }, cores)
    }

    #[test]
    fn a_busy_device_splits_nothing() {
        for kv_len in [1_u32, 64, 1000, 1 << 20] {
            for growing in [false, true] {
                assert_eq!(keys(256, kv_len, growing, 64), kv_len.next_multiple_of(KEY_TILE));
            }
        }
    }

    #[test]
    fn an_idle_device_is_filled() {
        for (workgroups, kv_len) in [(1, 1_u32 << 17), (8, 1 << 16), (32, 8192), (3, 50_000)] {
            let ranges = kv_len.div_ceil(keys(workgroups, kv_len, false, 64));
            let total = workgroups * u64::from(ranges);
            assert!(total >= 108, "{workgroups} times {ranges}");
            assert!(kv_len.div_ceil(ranges) >= FEWEST_KEYS / 2);
        }
    }

    #[test]
    fn few_keys_stay_together() {
        assert_eq!(keys(1, 300, false, 64), 320);
        assert_eq!(keys(1, 0, false, 64), 0);
    }

    #[test]
    fn a_sixteenth_of_the_capacity_is_split_as_if_it_were_all() {
        for kv_len in [1 << 14, 1 << 16] {
            for workgroups in [1, 8, 64] {
                let grown = keys(workgroups, kv_len, true, 64);
                let small = keys(workgroups, kv_len / 16, false, 64);
                assert_eq!(grown, small.max(kv_len / MOST_SPLITS), "{workgroups} {kv_len}");
            }
        }
    }
}
