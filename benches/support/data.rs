//! Inputs that are the same in every run.

#[cfg(feature = "cpu")]
use wgpu_attention::{Inputs, LayerInputs};
use wgpu_attention::{Problem, SelfAttention};

/// Factor on unit-range queries: with less, softmax is almost flat and hides errors.
const SHARPNESS: f32 = 8.0;

/// Inputs of one attention.
pub(crate) struct Tensors {
    pub(crate) q: Vec<f32>,
    pub(crate) k: Vec<f32>,
    pub(crate) v: Vec<f32>,
}

impl Tensors {
    pub(crate) fn of(problem: &Problem) -> Self {
        let s = problem.shape;
        let mut random = Random(1);
        Self {
            q: random.uniform(&[s.batch, s.heads, s.q_len, s.head_dim], SHARPNESS),
            k: random.uniform(&[s.batch, s.kv_heads, s.kv_len, s.head_dim], 1.0),
            v: random.uniform(&[s.batch, s.kv_heads, s.kv_len, s.v_head_dim], 1.0),
        }
    }

    /// The same, rounded to f16.
    pub(crate) fn halves_of(problem: &Problem) -> Self {
        let Self { q, k, v } = Self::of(problem);
        let rounded = |data: Vec<f32>| -> Vec<f32> {
            data.into_iter().map(|x| half::f16::from_f32(x).to_f32()).collect()
        };
        Self { q: rounded(q), k: rounded(k), v: rounded(v) }
    }

    #[cfg(feature = "cpu")]
    pub(crate) fn inputs(&self) -> Inputs<'_> {
        Inputs::new(&self.q, &self.k, &self.v)
    }
}

/// Inputs of one layer.
pub(crate) struct LayerTensors {
    pub(crate) x: Vec<f32>,
    pub(crate) w_q: Vec<f32>,
    pub(crate) w_k: Vec<f32>,
    pub(crate) w_v: Vec<f32>,
    pub(crate) w_o: Vec<f32>,
}

impl LayerTensors {
    pub(crate) fn of(layer: &SelfAttention) -> Self {
        let (s, model_dim) = (layer.shape, layer.model_dim);
        let mut random = Random(2);
        // Projections of a unit-range x are about unit-range too.
        let unit = (3.0 / f64::from(model_dim)).sqrt();
        #[allow(clippy::cast_possible_truncation, reason = "an amplitude")]
        let unit = unit as f32;
        Self {
            x: random.uniform(&[s.batch, s.q_len, model_dim], 1.0),
            w_q: random.uniform(&[s.heads, s.head_dim, model_dim], SHARPNESS * unit),
            w_k: random.uniform(&[s.kv_heads, s.head_dim, model_dim], unit),
            w_v: random.uniform(&[s.kv_heads, s.v_head_dim, model_dim], unit),
            w_o: random.uniform(&[layer.out_dim, s.heads, s.v_head_dim], unit),
        }
    }

    #[cfg(feature = "cpu")]
    pub(crate) fn inputs(&self) -> LayerInputs<'_> {
        let Self { x, w_q, w_k, w_v, w_o } = self;
        LayerInputs { x, w_q, w_k, w_v, w_o, ..LayerInputs::default() }
    }
}

/// Marsaglia's xorshift64.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// Below `n`.
    pub(crate) fn below(&mut self, n: u32) -> u32 {
        u32::try_from((self.next() >> 16) % u64::from(n)).expect("below a u32")
    }

    /// In `-amplitude..amplitude`.
    fn uniform(&mut self, axes: &[u32], amplitude: f32) -> Vec<f32> {
        let elements: u64 = axes.iter().map(|&axis| u64::from(axis)).product();
        let mut element = |_| {
            // 24 bits are exact in f32.
            let unit = (self.next() >> 40) as f32 / (1u64 << 23) as f32 - 1.0;
            unit * amplitude
        };
        (0..elements).map(&mut element).collect()
    }
}
