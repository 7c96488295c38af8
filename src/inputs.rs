//! Inputs of one attention in host memory, and what a pair of them comes to.

use crate::dropout::DropoutMask;
use crate::function::Pair;
use crate::problem::Problem;
use crate::sequence::Place;

/// Inputs of one attention. Slices may be longer than the problem's strides reach: views of one packed buffer
/// run to its end. What the problem does not ask for is not read.
///
/// Tensors are f32 whatever their storage type: what uploads them rounds them.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Inputs<'a> {
    /// `[batch, heads, q_len, head_dim]`.
    pub q: &'a [f32],
    /// `[batch, kv_heads, kv_len, head_dim]`, or `[pages, page_len, kv_heads, head_dim]`.
    pub k: &'a [f32],
    /// `[batch, kv_heads, kv_len, v_head_dim]`, or `[pages, page_len, kv_heads, v_head_dim]`.
    pub v: &'a [f32],
    /// As the boolean mask's axes and strides say, one a pair; true attends.
    pub mask: &'a [bool],
    /// As the bias's axes and strides say.
    pub bias: &'a [f32],
    /// `[heads]` or `[batch, heads]`.
    pub alibi_slopes: &'a [f32],
    /// `[heads]`.
    pub sinks: &'a [f32],
    /// `[batch]`.
    pub diag_offsets: &'a [i32],
    /// `[batch]`.
    pub q_lens: &'a [u32],
    /// `[batch]`.
    pub kv_lens: &'a [u32],
    /// `[batch + 1]`.
    pub cu_seqlens_q: &'a [u32],
    /// `[batch + 1]`.
    pub cu_seqlens_k: &'a [u32],
    /// `[batch, ceil(kv_len / page_len)]`; what lies past a sequence's length may be anything.
    pub block_table: &'a [u32],
    /// Seed of dropout; 0 where the problem has none.
    pub seed: u64,
    /// `[batch, heads, q_len, kv_len]`: which weights dropout keeps.
    pub keep: &'a [bool],
    /// The buffers of the caller's functions, by name, as 32-bit words. The functions' closures do not read them.
    pub buffers: Vec<(&'a str, &'a [u32])>,
}

/// One builder method a slice.
macro_rules! slices {
    ($($(#[$meta:meta])* $name:ident: $element:ty),* $(,)?) => {
        $($(#[$meta])* #[must_use] pub fn $name(self, $name: &'a [$element]) -> Self {
            Self { $name, ..self }
        })*
    };
}

impl<'a> Inputs<'a> {
    /// The inputs of every attention; shapes as the problem's layout says.
    pub fn new(q: &'a [f32], k: &'a [f32], v: &'a [f32]) -> Self {
        Self { q, k, v, ..Self::default() }
    }

    slices! {
        /// Gives the boolean mask.
        mask: bool,
        /// Gives the bias.
        bias: f32,
        /// Gives the slopes of ALiBi.
        alibi_slopes: f32,
        /// Gives the sinks.
        sinks: f32,
        /// Gives the diagonals' offsets.
        diag_offsets: i32,
        /// Gives the lengths of queries.
        q_lens: u32,
        /// Gives the lengths of keys.
        kv_lens: u32,
        /// Gives where sequences of queries start.
        cu_seqlens_q: u32,
        /// Gives where sequences of keys start.
        cu_seqlens_k: u32,
        /// Gives which page holds which positions.
        block_table: u32,
        /// Gives which weights dropout keeps.
        keep: bool,
    }

    /// Gives the seed of dropout.
    #[must_use]
    pub fn seed(self, seed: u64) -> Self {
        Self { seed, ..self }
    }

    /// Where a key and its value lie: their sequence or page, and their row in it. A page that the pool does not have is
    /// its last.
    pub(crate) fn key_at(&self, problem: &Problem, batch: u32, key: u32) -> (u32, u32) {
        let Some(pages) = problem.pages else { return (batch, key) };
        let row = batch as usize * pages.table_len(problem.shape.kv_len) as usize;
        let page = self.block_table[row + (key / pages.page_len) as usize];
        (page.min(pages.pages - 1), key % pages.page_len)
    }

    /// Gives a buffer of the caller's functions, as 32-bit words.
    #[must_use]
    pub fn buffer(mut self, name: &'a str, words: &'a [u32]) -> Self {
        self.buffers.push((name, words));
        self
    }
}

/// What one pair comes to.
pub(crate) struct PairValue<'a> {
    pub(crate) problem: &'a Problem,
    pub(crate) inputs: &'a Inputs<'a>,
}

impl PairValue<'_> {
    /// After the soft cap.
    pub(crate) fn capped(&self, s: f64) -> f64 {
        self.problem.softcap.map_or(s, |cap| f64::from(cap) * (s / f64::from(cap)).tanh())
    }

    /// What dropout multiplies the pair's weight by; `key` as in [`biased`](Self::biased).
    pub(crate) fn kept(&self, place: &Place, head: u32, key: u32) -> f64 {
        let Some(dropout) = self.problem.drops() else { return 1.0 };
        let pair = place.pair(head, key);
        let keeps = match dropout.mask {
            DropoutMask::Seeded => dropout.keeps(self.inputs.seed, pair),
            DropoutMask::Given => {
                let pairs = self.problem.keep_pairs().expect("of a given mask");
                let index = pairs.index([pair.batch, head, pair.q_pos, pair.kv_pos]);
                self.inputs.keep[usize::try_from(index).expect("in memory")]
            }
        };
        if keeps { 1.0 / (1.0 - f64::from(dropout.p)) } else { 0.0 }
    }

    /// After every bias; `None` where the pair is hidden. `key` is in tensor coordinates, and within the length.
    pub(crate) fn biased(&self, capped: f64, place: &Place, head: u32, key: u32) -> Option<f64> {
        let pair = place.pair(head, key);
        let s = self.summed(capped, pair)?;
        Some(self.problem.score_function.as_ref().map_or(s, |function| function.apply(s, pair)))
    }

    /// The same of a score before the soft cap, with its derivatives.
    pub(crate) fn derived(&self, raw: f64, place: &Place, head: u32, key: u32) -> Option<Derived> {
        let pair = place.pair(head, key);
        let s = self.summed(self.capped(raw), pair)?;
        let function = self.problem.score_function.as_ref();
        let by_bias = function.and_then(|function| function.derivative(s, pair)).unwrap_or(1.0);
        let cap = |cap: f32| 1.0 - (raw / f64::from(cap)).tanh().powi(2);
        Some(Derived {
            score: function.map_or(s, |function| function.apply(s, pair)),
            by_bias,
            by_raw: by_bias * self.problem.softcap.map_or(1.0, cap),
            by_slope: -by_bias * distance(pair),
        })
    }

    /// With ALiBi and the bias; `None` where the pair is hidden.
    fn summed(&self, capped: f64, pair: Pair) -> Option<f64> {
        let (problem, inputs) = (self.problem, self.inputs);
        let at = [pair.batch, pair.head, pair.q_pos, pair.kv_pos];
        let index = |n: u64| usize::try_from(n).expect("in memory");
        if problem.boolean_mask.is_some_and(|mask| !inputs.mask[index(mask.pairs.index(at))]) {
            return None;
        }
        if problem.mask_function.as_ref().is_some_and(|function| !function.shows(pair)) {
            return None;
        }
        let mut s = capped;
        if let Some(slopes) = problem.alibi {
            let slope = inputs.alibi_slopes[slopes.index(&problem.shape, pair.batch, pair.head)];
            s -= f64::from(slope) * distance(pair);
        }
        if let Some(bias) = problem.bias {
            let bias = inputs.bias[index(bias.pairs.index(at))];
            if bias == f32::NEG_INFINITY {
                return None;
            }
            s += f64::from(bias);
        }
        Some(s)
    }
}

/// The score of a visible pair, and what it changes by with what goes into it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Derived {
    /// After every bias.
    pub(crate) score: f64,
    /// With the bias.
    pub(crate) by_bias: f64,
    /// With the score before the soft cap.
    pub(crate) by_raw: f64,
    /// With the slope of ALiBi.
    pub(crate) by_slope: f64,
}

/// From the key that the query stands at.
fn distance(pair: Pair) -> f64 {
    let distance = i64::from(pair.q_pos) + pair.diagonal - i64::from(pair.kv_pos);
    #[allow(clippy::cast_precision_loss, reason = "positions are below 2^33")]
    let distance = distance.abs() as f64;
    distance
}

/// The standard slopes of ALiBi for `heads` heads: a geometric sequence that ends at 2^-8, and where `heads` is no
/// power of two, every other slope of twice as many heads after that of the largest power below. See
/// [Train Short, Test Long](https://arxiv.org/abs/2108.12409).
pub fn alibi_slopes(heads: u32) -> Vec<f32> {
    if heads == 0 {
        return Vec::new();
    }
    let of = |power: u32, i: u32| (-8.0 * f64::from(i + 1) / f64::from(power)).exp2();
    let power = 1 << heads.ilog2();
    #[allow(clippy::cast_possible_truncation, reason = "rounded once, from f64")]
    let round = |x: f64| x as f32;
    let first = (0..power).map(|i| round(of(power, i)));
    first.chain((0..heads - power).map(|i| round(of(2 * power, 2 * i)))).collect()
}
