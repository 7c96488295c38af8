//! A whole attention layer: projections around attention, all on the device.

use crate::blocks::ELEMENT_BYTES;
use crate::cost::Cost;
use crate::error::{PlanError, ProblemError};
use crate::layout::Strides;
use crate::mask::Mask;
use crate::operand::Operand;
use crate::problem::Problem;
use crate::shape::Shape;
pub use backward::LayerBackward;
#[cfg(feature = "runner")]
pub use host::{LayerBackwardInputs, LayerGradients, LayerInputs};
pub(crate) use plan::Inside;

mod backward;
mod gradients;
#[cfg(feature = "runner")]
mod host;
mod plan;

/// `out = attention(x W_q^T + b_q, c W_k^T + b_k, c W_v^T + b_v) W_o^T + b_o`, where the context `c` is `x`
/// itself in self-attention and another sequence in cross-attention.
///
/// Weights are `[outputs, inputs]`, as PyTorch's `nn.Linear` keeps them. See
/// [Attention Is All You Need](https://arxiv.org/abs/1706.03762), section 3.2.2. Where the layer
/// [drops attention weights](Self::with_dropout), it takes a seed too: another one every step of training.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct SelfAttention {
    /// Extents of the attention inside.
    pub shape: Shape,
    /// Width of an input vector.
    pub model_dim: u32,
    /// Width of a context vector, where keys and values come from another sequence.
    pub context_dim: Option<u32>,
    /// Width of an output vector.
    pub out_dim: u32,
    /// Which keys a query sees.
    pub mask: Mask,
    /// Factor on `q . k`; `None` is `1 / sqrt(head_dim)`.
    pub scale: Option<f32>,
    /// Probability in `[0, 1)` with which attention weights are dropped, by random numbers of a seed that is given.
    pub dropout: Option<f32>,
    /// `W_q`, `W_k` and `W_v` are one matrix, their biases one vector. Not for cross-attention.
    pub packed: bool,
    /// The projections have biases.
    pub biases: bool,
    /// Also write the attention weights.
    pub weights: bool,
    /// Also write what the gradients need.
    pub saved: bool,
}

impl SelfAttention {
    /// `batch` sequences of `seq_len` vectors `model_dim` wide; heads of `model_dim / heads`; no biases.
    ///
    /// # Errors
    /// [`ProblemError::UnevenHeads`] when `heads` does not divide `model_dim`.
    pub fn new(batch: u32, seq_len: u32, model_dim: u32, heads: u32) -> Result<Self, ProblemError> {
        if heads == 0 || !model_dim.is_multiple_of(heads) {
            return Err(ProblemError::UnevenHeads { model_dim, heads });
        }
        Ok(Self {
            shape: Shape::self_attention(batch, heads, seq_len, model_dim / heads),
            model_dim,
            context_dim: None,
            out_dim: model_dim,
            mask: Mask::FULL,
            scale: None,
            dropout: None,
            packed: false,
            biases: false,
            weights: false,
            saved: false,
        })
    }

    /// Other heads than `model_dim / heads` wide, or fewer key/value heads: `q_len` and `kv_len` stay.
    #[must_use]
    pub fn with_heads(self, heads: u32, kv_heads: u32, head_dim: u32, v_head_dim: u32) -> Self {
        let shape = Shape { heads, kv_heads, head_dim, v_head_dim, ..self.shape };
        Self { shape, ..self }
    }

    /// Keys and values from `kv_len` context vectors `context_dim` wide.
    #[must_use]
    pub fn with_context(self, kv_len: u32, context_dim: u32) -> Self {
        let shape = Shape { kv_len, ..self.shape };
        Self { shape, context_dim: Some(context_dim), ..self }
    }

    /// Output vectors `out_dim` wide.
    #[must_use]
    pub fn with_out_dim(self, out_dim: u32) -> Self {
        Self { out_dim, ..self }
    }

    /// Sets which keys a query sees.
    #[must_use]
    pub fn mask(self, mask: Mask) -> Self {
        Self { mask, ..self }
    }

    /// Sets the factor on `q . k`.
    #[must_use]
    pub fn scale(self, scale: f32) -> Self {
        Self { scale: Some(scale), ..self }
    }

    /// Drops attention weights with probability `p` in `[0, 1)`, as [`Problem::with_dropout`] does, by random numbers of
    /// a [`seed`](crate::Tensors::seed) that is given. The gradients drop the same ones by the same seed. With `p` 0
    /// the kernels are those without dropout, and the seed may be left out. Weights that are handed out are those before.
    #[must_use]
    pub fn with_dropout(self, p: f32) -> Self {
        Self { dropout: Some(p), ..self }
    }

    /// One matrix `w_qkv` and one bias `b_qkv` in place of three.
    #[must_use]
    pub fn packed(self) -> Self {
        Self { packed: true, ..self }
    }

    /// Every projection has a bias.
    #[must_use]
    pub fn with_biases(self) -> Self {
        Self { biases: true, ..self }
    }

    /// Also write the attention weights.
    #[must_use]
    pub fn with_weights(self) -> Self {
        Self { weights: true, ..self }
    }

    /// Also write what the gradients need, as [`saved`](crate::Tensors::saved): q, k and v, what the heads give, and
    /// the log-sum-exp of every row. Its [`backward`](Self::backward) reads them, where it would else compute them again.
    #[must_use]
    pub fn with_saved(self) -> Self {
        Self { saved: true, ..self }
    }

    /// The gradients of the layer.
    pub fn backward(&self) -> LayerBackward {
        LayerBackward { layer: *self }
    }

    /// The attention inside: q, k and v as the projections lay them out, side by side where the sequence is
    /// one and the same.
    pub(crate) fn problem(&self) -> Problem {
        let s = self.shape;
        let view = |width: u64, len: u32, dim: u32| Strides {
            batch: width.saturating_mul(len.into()),
            head: dim.into(),
            row: width,
        };
        let [q, k, v] = self.widths();
        let (q_width, kv_width) = match self.context_dim {
            None => (q + k + v, q + k + v),
            Some(_) => (q, k + v),
        };
        let mut problem = Problem::new(s)
            .mask(self.mask)
            .q_strides(view(q_width, s.q_len, s.head_dim))
            .k_strides(view(kv_width, s.kv_len, s.head_dim))
            .v_strides(view(kv_width, s.kv_len, s.v_head_dim))
            .out_strides(Strides::bshd(s.heads, s.q_len, s.v_head_dim));
        problem.scale = self.scale;
        problem.weights = self.weights;
        problem.lse = self.saved;
        match self.dropout {
            Some(p) => problem.with_dropout(p),
            None => problem,
        }
    }

    /// Columns of all heads of q, k and v.
    pub(crate) fn widths(&self) -> [u64; 3] {
        let s = self.shape;
        [(s.heads, s.head_dim), (s.kv_heads, s.head_dim), (s.kv_heads, s.v_head_dim)]
            .map(|(heads, dim)| u64::from(heads) * u64::from(dim))
    }

    /// Checks everything that can be checked without a device.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn validate(&self) -> Result<(), PlanError> {
        let empty = |axis| Err(PlanError::Problem(ProblemError::EmptyAxis { axis }));
        if self.model_dim == 0 {
            return empty("model_dim");
        }
        if self.context_dim == Some(0) {
            return empty("context_dim");
        }
        if self.out_dim == 0 {
            return empty("out_dim");
        }
        if self.packed && self.context_dim.is_some() {
            return Err(PlanError::Problem(ProblemError::PackedContext));
        }
        if self.context_dim.is_none() && self.shape.q_len != self.shape.kv_len {
            let Shape { q_len, kv_len, .. } = self.shape;
            return Err(PlanError::Problem(ProblemError::UnevenLengths { q_len, kv_len }));
        }
        self.problem().validate()?;
        if self.saved && Inside::saved(self).1 > i64::MAX.unsigned_abs() / ELEMENT_BYTES {
            let tensor = Operand::Saved.name();
            return Err(PlanError::Problem(ProblemError::Unaddressable { tensor }));
        }
        Ok(())
    }

    /// What the caller may give to be read.
    fn inputs(&self) -> Vec<Operand> {
        let mut operands = vec![Operand::X, Operand::WO];
        operands.extend(self.context_dim.map(|_| Operand::Context));
        let (matrices, biases): (&[_], &[_]) = if self.packed {
            (&[Operand::WQkv], &[Operand::BQkv, Operand::BO])
        } else {
            (
                &[Operand::WQ, Operand::WK, Operand::WV],
                &[Operand::BQ, Operand::BK, Operand::BV, Operand::BO],
            )
        };
        operands.extend(matrices);
        operands.extend(biases.iter().filter(|_| self.biases));
        operands
    }

    /// Rows, inputs and outputs of the projections.
    fn products(&self) -> [[u64; 3]; 3] {
        let s = self.shape;
        let [q, k, v] = self.widths();
        let rows = |len: u32| u64::from(s.batch) * u64::from(len);
        let (model, out) = (u64::from(self.model_dim), u64::from(self.out_dim));
        let context = u64::from(self.context_dim.unwrap_or(self.model_dim));
        let heads = u64::from(s.heads) * u64::from(s.v_head_dim);
        [[rows(s.q_len), model, q], [rows(s.kv_len), context, k + v], [rows(s.q_len), heads, out]]
    }

    /// Floating-point operations of the projections.
    pub(crate) fn projection_flops(&self) -> u64 {
        let flops = |[m, k, n]: [u64; 3]| (2 * m).saturating_mul(k).saturating_mul(n);
        self.products().map(flops).into_iter().fold(0, u64::saturating_add)
    }

    /// Of these, the last projection's.
    #[cfg(feature = "cpu")]
    pub(crate) fn last_projection_flops(&self) -> u64 {
        let [.., [m, k, n]] = self.products();
        (2 * m).saturating_mul(k).saturating_mul(n)
    }

    /// Floating-point operations of projections and attention; bytes of inputs, weights and output.
    fn cost(&self) -> Cost {
        let s = self.shape;
        let rows = |len: u32| u64::from(s.batch) * u64::from(len);
        let (model, out) = (u64::from(self.model_dim), u64::from(self.out_dim));
        let context = u64::from(self.context_dim.unwrap_or(self.model_dim));
        let mut cost = Cost { bytes: 0, ..Cost::of(&self.problem()) };
        cost.flops = cost.flops.saturating_add(self.projection_flops());
        for [_, k, n] in self.products() {
            cost.bytes = cost.bytes.saturating_add(ELEMENT_BYTES * k.saturating_mul(n));
        }
        let other = if self.context_dim.is_some() { rows(s.kv_len) } else { 0 };
        for (rows, width) in [(rows(s.q_len), model), (other, context), (rows(s.q_len), out)] {
            cost.bytes = cost.bytes.saturating_add(ELEMENT_BYTES * rows.saturating_mul(width));
        }
        cost
    }
}
