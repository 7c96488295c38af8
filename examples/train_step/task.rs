//! What is learnt, and the model that learns it.

use wgpu_attention::{Mask, SelfAttention};

/// Keys and values that there are.
pub(crate) const KEYS: usize = 64;
pub(crate) const VALUES: usize = 16;
/// Pairs of a sequence, no key twice.
pub(crate) const PAIRS: usize = 24;
/// Tokens of a sequence: the pairs, and the key whose value is asked for.
pub(crate) const LEN: usize = PAIRS + 1;
/// Sequences of a step.
pub(crate) const BATCH: usize = 64;
/// Width of a token.
pub(crate) const DIM: usize = 64;
/// Of Adam.
pub(crate) const RATE: f32 = 1e-3;
/// The value of a token that has none.
pub(crate) const NO_VALUE: u32 = u32::MAX;

/// Where the parameters of each kind begin, in one buffer, and where all end.
pub(crate) const KEY_AT: usize = 0;
pub(crate) const VALUE_AT: usize = KEY_AT + KEYS * DIM;
pub(crate) const W_QKV_AT: usize = VALUE_AT + VALUES * DIM;
pub(crate) const W_O_AT: usize = W_QKV_AT + 3 * DIM * DIM;
pub(crate) const HEAD_AT: usize = W_O_AT + DIM * DIM;
pub(crate) const PARAMETERS: usize = HEAD_AT + VALUES * DIM;

/// One head over all of a token.
pub(crate) fn layer() -> SelfAttention {
    let [batch, len, dim] = [BATCH, LEN, DIM].map(|n| u32::try_from(n).expect("small"));
    let layer = SelfAttention::new(batch, len, dim, 1).expect("an even split");
    layer.mask(Mask::CAUSAL).packed().with_saved()
}

/// The share of right answers of who guesses.
pub(crate) fn chance() -> f64 {
    1.0 / VALUES as f64
}

/// Parameters to begin with: matrices so that what comes out is about as large as what goes in.
pub(crate) fn parameters(seed: u32) -> Vec<f32> {
    let mut random = Random(seed);
    (0..PARAMETERS)
        .map(|i| {
            let size = if i < W_QKV_AT { 1.0 } else { 1.0 / (DIM as f32).sqrt() };
            size * (random.unit() * 2.0 - 1.0)
        })
        .collect()
}

/// Lines that the kernels begin with.
pub(crate) fn constants(steps: usize) -> String {
    let constants = [
        ("KEYS", KEYS),
        ("VALUES", VALUES),
        ("PAIRS", PAIRS),
        ("LEN", LEN),
        ("BATCH", BATCH),
        ("ROWS", BATCH * LEN),
        ("DIM", DIM),
        ("KEY_AT", KEY_AT),
        ("VALUE_AT", VALUE_AT),
        ("HEAD_AT", HEAD_AT),
        ("PARAMETERS", PARAMETERS),
        ("STEPS", steps),
    ];
    let lines = constants.map(|(name, n)| format!("const {name}: u32 = {n}u;\n"));
    format!("{}const NO_VALUE: u32 = {NO_VALUE}u;\nconst RATE: f32 = {RATE:?};\n", lines.concat())
}

/// Sequences of a step: `[BATCH, LEN]` tokens of a key and a value, and the value that each asks for.
#[derive(Clone, Default)]
pub(crate) struct Sample {
    pub(crate) tokens: Vec<[u32; 2]>,
    pub(crate) targets: Vec<u32>,
}

impl Sample {
    /// As `sample.wgsl` makes them.
    pub(crate) fn of_step(seed: u32, step: u32) -> Self {
        let mut sample = Self::default();
        for sequence in 0..BATCH as u32 {
            let by_step = mixed(times(step).wrapping_add(mixed(times(sequence).wrapping_add(1))));
            let mut random = Random(mixed(times(seed).wrapping_add(by_step)));
            let mut keys: [u32; KEYS] = std::array::from_fn(|i| i as u32);
            let asked = random.below(PAIRS);
            for i in 0..PAIRS {
                keys.swap(i, i + random.below(KEYS - i));
                let value = random.below(VALUES) as u32;
                sample.tokens.push([keys[i], value]);
                if i == asked {
                    sample.targets.push(value);
                }
            }
            sample.tokens.push([keys[asked], NO_VALUE]);
        }
        sample
    }

    /// Where the key that a sequence asks for is.
    pub(crate) fn asked(&self, sequence: usize) -> usize {
        let tokens = &self.tokens[sequence * LEN..][..LEN];
        tokens.iter().position(|token| token[0] == tokens[PAIRS][0]).expect("asked for")
    }
}

fn times(x: u32) -> u32 {
    x.wrapping_mul(747_796_405)
}

fn mixed(x: u32) -> u32 {
    let word = ((x >> ((x >> 28) + 4)) ^ x).wrapping_mul(277_803_737);
    (word >> 22) ^ word
}

/// O'Neill's PCG: <https://www.pcg-random.org>.
struct Random(u32);

impl Random {
    fn next(&mut self) -> u32 {
        self.0 = times(self.0).wrapping_add(2_891_336_453);
        mixed(self.0)
    }

    fn below(&mut self, n: usize) -> usize {
        self.next() as usize % n
    }

    /// In `0..1`.
    fn unit(&mut self) -> f32 {
        (self.next() >> 8) as f32 / (1 << 24) as f32
    }
}

/// How well the sequences of a step were answered, before the step.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Point {
    /// Mean, in nats.
    pub(crate) loss: f64,
    /// Share of right answers.
    pub(crate) accuracy: f64,
}

impl Point {
    pub(crate) fn mean(points: &[Self]) -> Self {
        let sum = |of: fn(&Self) -> f64| points.iter().map(of).sum::<f64>() / points.len() as f64;
        Self { loss: sum(|point| point.loss), accuracy: sum(|point| point.accuracy) }
    }
}
