//! Dropout of attention weights: which pairs are kept, by counter-based random numbers.

use crate::function::Pair;

/// Drops attention weights with probability `p` and scales those it keeps by `1 / (1 - p)`: the softmax and its lse
/// stay as they are. A row sees the pairs that are dropped too: of values that are NaN or infinite it may be anything. See
/// [Dropout](https://jmlr.org/papers/v15/srivastava14a.html).
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Dropout {
    /// Probability to drop a weight, in `[0, 1)`.
    pub p: f32,
    /// What says which.
    pub mask: DropoutMask,
}

/// What says which weights are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum DropoutMask {
    /// Random numbers of a seed, `[2]` u32, low word first: the same for a pair whatever kernel, tile or batch it is in.
    Seeded,
    /// A tensor `keep`, `[batch, heads, q_len, kv_len]`: for tests. The staged kernels, their gradients and the CPU path
    /// read it.
    Given,
}

impl Dropout {
    /// WGSL of [`keeps`](Self::keeps):
    /// `fn dropout_keeps(seed: vec2<u32>, threshold: u32, batch: u32, head: u32, q_pos: u32, kv_pos: u32) -> bool`.
    pub const WGSL: &str = include_str!("../shaders/dropout/random.wgsl");

    /// Random numbers, of 32 bits, below which a pair is dropped.
    pub fn threshold(&self) -> u32 {
        #[allow(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "p is in [0, 1)"
        )]
        let threshold = (f64::from(self.p) * 4_294_967_296.0) as u32;
        threshold
    }

    /// What weights that are kept are multiplied by.
    pub fn keep_scale(&self) -> f32 {
        #[allow(clippy::cast_possible_truncation, reason = "rounded once, from f64")]
        let scale = (1.0 / (1.0 - f64::from(self.p))) as f32;
        scale
    }

    /// Whether random numbers of `seed` keep the pair. Positions count from 0 within the sequence.
    ///
    /// ```
    /// # use wgpu_attention::{Pair, Problem, Shape};
    /// let problem = Problem::new(Shape::self_attention(1, 1, 100, 8)).with_dropout(0.25);
    /// let dropout = problem.dropout.unwrap_or_else(|| unreachable!());
    /// let pairs = (0..100).flat_map(|i| (0..100).map(move |j| Pair::new(0, 0, i, j, 0)));
    /// let kept = pairs.filter(|pair| dropout.keeps(42, *pair)).count();
    /// assert!((7_300..7_700).contains(&kept));
    /// ```
    pub fn keeps(&self, seed: u64, pair: Pair) -> bool {
        let words = words(head_key(seed, pair.batch, pair.head), pair.q_pos, pair.kv_pos / 4);
        words[(pair.kv_pos % 4) as usize] >= self.threshold()
    }
}

/// What the random numbers of a head are drawn from.
pub(crate) fn head_key(seed: u64, batch: u32, head: u32) -> [u32; 4] {
    let [low, high] = seed_words(seed);
    hash([low, high, batch, head])
}

/// The random numbers of a query and of four keys, from `4 * quad` on.
#[inline(always)]
pub(crate) fn words([x, y, z, w]: [u32; 4], q_pos: u32, quad: u32) -> [u32; 4] {
    hash([x.wrapping_add(q_pos), y.wrapping_add(quad), z, w])
}

/// As buffers hold a seed.
pub(crate) fn seed_words(seed: u64) -> [u32; 2] {
    #[allow(clippy::cast_possible_truncation, reason = "the halves of a seed")]
    let words = [seed as u32, (seed >> 32) as u32];
    words
}

/// `pcg4d` of [Hash Functions for GPU Rendering](https://jcgt.org/published/0009/03/02/).
#[inline(always)]
fn hash(v: [u32; 4]) -> [u32; 4] {
    let mix = |[x, y, z, w]: [u32; 4]| {
        let x = x.wrapping_add(y.wrapping_mul(w));
        let y = y.wrapping_add(z.wrapping_mul(x));
        let z = z.wrapping_add(x.wrapping_mul(y));
        let w = w.wrapping_add(y.wrapping_mul(z));
        [x, y, z, w]
    };
    let v = v.map(|x| x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223));
    mix(mix(v).map(|x| x ^ x >> 16))
}
