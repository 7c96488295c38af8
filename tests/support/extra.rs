//! Inputs besides q, k and v.

use super::case::rounded;
use super::random::Random;
use wgpu_attention::{Diagonal, Dropout, DropoutMask, Lengths, Pairs, Problem, Slopes};

/// Whatever a problem asks for; empty where it does not.
#[derive(Clone, Debug, Default)]
pub(crate) struct Extra {
    pub(crate) mask: Vec<bool>,
    pub(crate) bias: Vec<f32>,
    pub(crate) alibi_slopes: Vec<f32>,
    pub(crate) sinks: Vec<f32>,
    pub(crate) diag_offsets: Vec<i32>,
    pub(crate) q_lens: Vec<u32>,
    pub(crate) kv_lens: Vec<u32>,
    pub(crate) cu_seqlens_q: Vec<u32>,
    pub(crate) cu_seqlens_k: Vec<u32>,
    pub(crate) block_table: Vec<u32>,
    pub(crate) seed: u64,
    pub(crate) keep: Vec<bool>,
    pub(crate) buffers: Vec<(String, Vec<u32>)>,
}

impl Extra {
    pub(crate) fn of(problem: &Problem, random: &mut Random) -> Self {
        let s = problem.shape;
        let mut extra = Self::default();
        if let Some(mask) = problem.boolean_mask {
            // Some rows see nothing, some all, some tiles are hidden whole.
            let [.., keys] = mask.pairs.axes;
            let width = keys.max(1) as usize;
            extra.mask = vec![false; elements(mask.pairs)];
            for row in extra.mask.chunks_mut(width) {
                let (kind, begin, end) =
                    (random.below(8), random.below(keys + 1), random.below(keys + 1));
                for (j, shown) in (0u32..).zip(row) {
                    *shown = match kind {
                        0 => false,
                        1 => true,
                        2 | 3 => (begin.min(end)..begin.max(end)).contains(&j),
                        _ => random.below(3) > 0,
                    };
                }
            }
        }
        if let Some(bias) = problem.bias {
            let value = |random: &mut Random| match random.below(16) {
                0 => f32::NEG_INFINITY,
                1 => -1e4,
                _ => 3.0 * random.unit(),
            };
            let data = (0..elements(bias.pairs)).map(|_| value(random)).collect();
            extra.bias = rounded(data, bias.dtype);
        }
        let (heads, batch) = (s.heads as usize, s.batch as usize);
        let slopes = match problem.alibi {
            None => 0,
            Some(Slopes::PerSequence) => batch * heads,
            Some(_) => heads,
        };
        extra.alibi_slopes = (0..slopes).map(|_| 0.25 + 0.25 * random.unit()).collect();
        if problem.sinks {
            let value = |random: &mut Random| match random.below(5) {
                0 => f32::NEG_INFINITY,
                _ => 3.0 * random.unit(),
            };
            extra.sinks = (0..heads).map(|_| value(random)).collect();
        }
        if problem.mask.diagonal == Diagonal::PerSequence {
            let reach = s.kv_len + s.q_len + 1;
            let value = |random: &mut Random| match random.below(9) {
                0 => i32::MAX,
                1 => i32::MIN,
                _ => {
                    i32::try_from(random.below(2 * reach)).expect("small")
                        - i32::try_from(reach).expect("small")
                }
            };
            extra.diag_offsets = (0..batch).map(|_| value(random)).collect();
        }
        let mut lens = |len: u32, given: bool| -> Vec<u32> {
            let value = |random: &mut Random| match random.below(5) {
                0 => 0,
                1 => len,
                _ => random.below(len + 1),
            };
            if given { (0..batch).map(|_| value(random)).collect() } else { Vec::new() }
        };
        match problem.lengths {
            Lengths::PerSequence { q, kv } => {
                extra.q_lens = lens(s.q_len, q);
                extra.kv_lens = lens(s.kv_len, kv);
            }
            Lengths::Packed => {
                extra.cu_seqlens_q = starts(random, batch, s.q_len);
                extra.cu_seqlens_k = starts(random, batch, s.kv_len);
            }
            _ => {}
        }
        if problem.pages.is_some() {
            extra.block_table = extra.pages(problem, random);
        }
        match problem.dropout {
            Some(Dropout { mask: DropoutMask::Given, .. }) => {
                let n = elements(Pairs::new([s.batch, s.heads, s.q_len, s.kv_len]));
                extra.keep = (0..n).map(|_| random.below(3) > 0).collect();
            }
            Some(_) => extra.seed = random.next(),
            None => {}
        }
        let score = problem.score_function.iter().flat_map(|function| function.buffers());
        let mask = problem.mask_function.iter().flat_map(|function| function.buffers());
        for name in score.chain(mask) {
            extra.buffers.push((name.to_owned(), super::functions::buffer(name)));
        }
        extra
    }
}

impl Extra {
    /// Pages in any order, each of one sequence; but that at times one sequence starts with the pages of another. Past a
    /// sequence's length there is none.
    fn pages(&self, problem: &Problem, random: &mut Random) -> Vec<u32> {
        let (s, pages) = (problem.shape, problem.pages.expect("pages"));
        let row = pages.table_len(s.kv_len) as usize;
        let mut free: Vec<u32> = (0..pages.pages).collect();
        let mut table = vec![u32::MAX; s.batch as usize * row];
        for batch in 0..s.batch as usize {
            let len = self.kv_lens.get(batch).copied().unwrap_or(s.kv_len);
            for entry in &mut table[batch * row..][..pages.table_len(len) as usize] {
                let at = random.below(u32::try_from(free.len()).expect("few")) as usize;
                *entry = free.swap_remove(at);
            }
        }
        let shared = s.batch > 1 && row > 0 && table[row] < pages.pages && random.below(2) == 0;
        if shared && table[0] < pages.pages {
            table[row] = table[0];
        }
        table
    }

    /// Where a key and its value lie.
    pub(crate) fn key_at(&self, problem: &Problem, batch: u32, key: u32) -> (u32, u32) {
        let Some(pages) = problem.pages else { return (batch, key) };
        let row = batch * pages.table_len(problem.shape.kv_len);
        (self.block_table[(row + key / pages.page_len) as usize], key % pages.page_len)
    }
}

/// Elements from the first to one past the last.
pub(crate) fn elements(pairs: Pairs) -> usize {
    if pairs.axes.contains(&0) {
        return 0;
    }
    let spans = pairs.axes.iter().zip(pairs.strides);
    let last: u64 = spans.map(|(n, stride)| u64::from(n - 1) * stride).sum();
    usize::try_from(last + 1).expect("in memory")
}

/// Where sequences start and the last ends: at random, some empty.
fn starts(random: &mut Random, batch: usize, total: u32) -> Vec<u32> {
    let mut cuts: Vec<u32> = (1..batch).map(|_| random.below(total + 1)).collect();
    cuts.sort_unstable();
    if batch == 0 {
        return vec![0];
    }
    [vec![0], cuts, vec![total]].concat()
}
