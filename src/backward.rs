//! The gradients of an attention.

use crate::cost::Cost;
use crate::error::ProblemError;
use crate::layout::Strides;
use crate::problem::Problem;

mod empty;
mod fused;
mod plan;
mod products;
mod sums;

pub(crate) use plan::GradientViews;

/// Gradients of an attention: from what it read and wrote, and the gradients of out (and lse), to those of q, k and v,
/// and where asked of bias, sinks and ALiBi slopes.
///
/// ```text
/// p = exp(s - lse)       d_p = keep / (1 - p_drop) d_out v^T       delta = <out, d_out>
/// d_s = p (d_p - delta + d_lse)      d_q = scale d_s k      d_k = scale d_s^T q      d_v = (p keep / (1 - p_drop))^T d_out
/// ```
///
/// A soft cap and a caller's score function multiply `d_s` by their derivatives. Rows that see no key, and keys that no
/// row sees, have gradients of exactly 0. Nothing is summed by atomics: the same inputs give the same bits.
///
/// Plans bind what the attention binds, [`out`](crate::Tensors::out) and [`lse`](crate::Tensors::lse) as it wrote
/// them, [`d_out`](crate::Tensors::d_out), and for results [`d_q`](crate::Tensors::d_q) and so on. These have the
/// storage types of the tensors that they are gradients of; those of bias, sinks and slopes are f32.
///
/// ```
/// # use wgpu_attention::{Backward, BackwardInputs, Error, Inputs, Mask, Problem, Runner, Shape};
/// # fn main() -> Result<(), Error> {
/// # let runner = Runner::cpu();
/// let problem = Problem::new(Shape::self_attention(1, 1, 3, 2)).mask(Mask::CAUSAL).with_lse();
/// let (q, k, v) = ([1.0, 0.0, 0.0, 1.0, 1.0, 1.0], [0.5; 6], [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
/// let inputs = Inputs::new(&q, &k, &v);
/// let forward = runner.forward(&problem, &inputs)?;
/// let lse = forward.lse.unwrap_or_default();
/// let given = BackwardInputs { out: &forward.out, lse: &lse, d_out: &[1.0; 6], ..Default::default() };
/// let gradients = runner.backward(&Backward::new(&problem), &inputs, &given)?;
/// // Weights of a row sum to 1.
/// assert!((gradients.v.iter().sum::<f32>() - 6.0).abs() < 1e-5);
/// # Ok(()) }
/// ```
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Backward {
    /// The attention; whether it writes its lse does not matter.
    pub problem: Problem,
    /// Strides of the gradient of out.
    pub d_out: Strides,
    /// Strides of the gradient of q.
    pub d_q: Strides,
    /// Strides of the gradient of k.
    pub d_k: Strides,
    /// Strides of the gradient of v.
    pub d_v: Strides,
    /// The gradient of lse is given.
    pub d_lse: bool,
    /// Also write the gradient of the bias.
    pub d_bias: bool,
    /// Also write the gradient of the sinks.
    pub d_sinks: bool,
    /// Also write the gradient of the slopes of ALiBi.
    pub d_alibi_slopes: bool,
}

impl Backward {
    /// Gradients of q, k and v, each as its tensor lies.
    pub fn new(problem: &Problem) -> Self {
        Self {
            d_out: problem.out,
            d_q: problem.q,
            d_k: problem.k,
            d_v: problem.v,
            d_lse: false,
            d_bias: false,
            d_sinks: false,
            d_alibi_slopes: false,
            problem: problem.clone(),
        }
    }

    /// Sets the strides of the gradient of out.
    #[must_use]
    pub fn d_out_strides(self, d_out: Strides) -> Self {
        Self { d_out, ..self }
    }

    /// Sets the strides of the gradient of q.
    #[must_use]
    pub fn d_q_strides(self, d_q: Strides) -> Self {
        Self { d_q, ..self }
    }

    /// Sets the strides of the gradient of k: one that the sequences of a batch share has a gradient of each.
    #[must_use]
    pub fn d_k_strides(self, d_k: Strides) -> Self {
        Self { d_k, ..self }
    }

    /// Sets the strides of the gradient of v: one that the sequences of a batch share has a gradient of each.
    #[must_use]
    pub fn d_v_strides(self, d_v: Strides) -> Self {
        Self { d_v, ..self }
    }

    /// The gradient of lse is given too, `[batch, heads, q_len]` f32. Of a row that sees nothing it is not used, unless
    /// a sink is all that it sees.
    #[must_use]
    pub fn with_d_lse(self) -> Self {
        Self { d_lse: true, ..self }
    }

    /// Also write the gradient of the bias, summed over the axes that it shares: f32, contiguous.
    #[must_use]
    pub fn with_d_bias(self) -> Self {
        Self { d_bias: true, ..self }
    }

    /// Also write the gradient of the sinks, `[heads]` f32.
    #[must_use]
    pub fn with_d_sinks(self) -> Self {
        Self { d_sinks: true, ..self }
    }

    /// Also write the gradient of the slopes of ALiBi, f32, as they are.
    #[must_use]
    pub fn with_d_alibi_slopes(self) -> Self {
        Self { d_alibi_slopes: true, ..self }
    }

    /// Checks everything that can be checked without a device.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn validate(&self) -> Result<(), ProblemError> {
        let problem = &self.problem;
        problem.validate()?;
        let function = problem.score_function.as_ref();
        let no_derivative = function.is_some_and(|function| function.derivative.is_none());
        for (refused, what, why) in [
            (problem.pages.is_some(), "keys in pages", "they are a cache"),
            (problem.kv_dtype.is_quantised(), "keys in blocks", "they are a cache"),
            (problem.weights, "weights", "attention has none"),
            (problem.scores.is_some(), "scores", "attention has none"),
            (no_derivative, "the score function", "its derivative is not given"),
            (self.d_bias && problem.bias.is_none(), "a bias", "the problem has none"),
            (self.d_sinks && !problem.sinks, "sinks", "the problem has none"),
            (self.d_alibi_slopes && problem.alibi.is_none(), "slopes", "the problem has none"),
        ] {
            if refused {
                return Err(ProblemError::NoGradient { what, why });
            }
        }
        let s = problem.tensor_shape();
        for (tensor, strides, [heads, len, dim], dtype, written) in [
            ("d_out", self.d_out, [s.heads, s.q_len, s.v_head_dim], problem.out_dtype, false),
            ("d_q", self.d_q, [s.heads, s.q_len, s.head_dim], problem.dtype, true),
            ("d_k", self.d_k, [s.kv_heads, s.kv_len, s.head_dim], problem.kv_dtype, true),
            ("d_v", self.d_v, [s.kv_heads, s.kv_len, s.v_head_dim], problem.kv_dtype, true),
        ] {
            let elements = strides.extent(s.batch, heads, len, dim);
            let bytes = elements.and_then(|elements| dtype.bytes_of(elements));
            if bytes.is_none_or(|bytes| bytes > i64::MAX.unsigned_abs()) {
                return Err(ProblemError::Unaddressable { tensor });
            }
            if written && !strides.is_injective(s.batch, heads, len, dim) {
                return Err(ProblemError::OverlappingRows { tensor, strides });
            }
        }
        Ok(())
    }

    /// The least that any kernels must do: five products where the attention has two, and its tensors read once.
    pub fn cost(&self) -> Cost {
        let forward = Cost::of(&self.problem);
        let s = self.problem.shape;
        let (d, dv) = (u64::from(s.head_dim), u64::from(s.v_head_dim));
        // Two products as wide as a value, three as wide as a key, of each pair.
        let pairs = forward.flops / (2 * (d + dv));
        let flops = pairs.saturating_mul(2 * (3 * d + 2 * dv));
        Cost { flops, bytes: forward.bytes.saturating_mul(2) }
    }
}

/// What an attention gave and the gradients of that, in host memory.
#[derive(Clone, Copy, Debug, Default)]
#[allow(clippy::exhaustive_structs, reason = "filled in by field name, with ..Default::default()")]
pub struct BackwardInputs<'a> {
    /// As the problem lays out `out`.
    pub out: &'a [f32],
    /// `[batch, heads, q_len]`.
    pub lse: &'a [f32],
    /// As the [`Backward`] lays it out.
    pub d_out: &'a [f32],
    /// `[batch, heads, q_len]`, exactly where the [`Backward`] has it.
    pub d_lse: &'a [f32],
}

/// Gradients in host memory; 0 in gaps between rows.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct Gradients {
    /// As the [`Backward`] lays out `d_q`.
    pub q: Vec<f32>,
    /// As the [`Backward`] lays out `d_k`.
    pub k: Vec<f32>,
    /// As the [`Backward`] lays out `d_v`.
    pub v: Vec<f32>,
    /// The axes of the bias, contiguous, where asked for.
    pub bias: Option<Vec<f32>>,
    /// `[heads]`, where asked for.
    pub sinks: Option<Vec<f32>>,
    /// As the slopes, where asked for.
    pub alibi_slopes: Option<Vec<f32>>,
}
