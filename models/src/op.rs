//! What a model is made of: operations on tensors, in the order in which they run.
//!
//! A list of them is the same on a GPU, where each becomes kernels, and on the CPU.

use crate::tensor::{Tensor, Weights};
use wgpu_attention::{Append, Problem, RotaryEmbedding};

/// One operation. Widths are those of the weights and scales; rows are as many as `x` has.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Op {
    /// `out[i] = factor * table[tokens[i]] + positions[i]`; a token that the table does not have is a row of zeros.
    Embed {
        /// `[rows]` u32.
        tokens: Tensor,
        /// `[vocabulary, width]`.
        table: Weights,
        /// Of the rows of the table.
        factor: f32,
        /// Learnt or sinusoidal positions.
        positions: Option<Positions>,
        /// `[rows, width]`.
        out: Tensor,
    },
    /// `out = finish(x w^T + bias)`.
    Linear {
        /// `[rows, inputs]`.
        x: Tensor,
        /// `[outputs, inputs]`.
        w: Weights,
        /// `[outputs]`.
        bias: Option<Tensor>,
        /// What happens to a sum before it is stored.
        finish: Finish,
        /// `[rows, outputs]`.
        out: Tensor,
    },
    /// `(x - mean) / sqrt(variance + epsilon) * scale + bias` of every row; without a bias
    /// `x / sqrt(mean of squares + epsilon) * scale`.
    Norm {
        /// `[rows, width]`.
        x: Tensor,
        /// `[width]`.
        scale: Tensor,
        /// `[width]`: a layer norm. `None`: an RMS norm.
        bias: Option<Tensor>,
        /// Added to the variance.
        epsilon: f32,
        /// `[rows, width]`.
        out: Tensor,
    },
    /// `silu(gate) * up`.
    Gate {
        /// `[rows, 2 * width]`: gate and up side by side.
        x: Tensor,
        /// `[rows, width]`.
        out: Tensor,
        /// Of one of the two.
        width: usize,
    },
    /// The recurrence `state = f state + (1 - f) c`, `out += max(state, 0)`, of one token.
    Ssru {
        /// `[2 * width]`: candidate c, and what f is the logistic function of.
        x: Tensor,
        /// `[width]`.
        state: Tensor,
        /// `[width]`.
        out: Tensor,
    },
    /// The library's rotary embedding.
    Rotate {
        /// What is turned.
        embedding: RotaryEmbedding,
        /// As the embedding says.
        x: Tensor,
        /// `[1]` u32.
        pos_offsets: Tensor,
        /// `[positions, rotary_dim / 2]`: cosines and sines.
        tables: [Tensor; 2],
        /// As the embedding says.
        out: Tensor,
    },
    /// The library's append to a cache.
    Append {
        /// What is appended.
        append: Append,
        /// New keys and values.
        new: [Tensor; 2],
        /// The cache of keys and that of values.
        cache: [Tensor; 2],
        /// `[1]` u32.
        kv_lens: Tensor,
        /// `[1]` u32.
        status: Tensor,
    },
    /// The library's attention.
    Attend {
        /// Which.
        problem: Box<Problem>,
        /// Queries, keys and values, as the problem says.
        qkv: [Tensor; 3],
        /// `[batch]` u32: lengths of queries.
        q_lens: Option<Tensor>,
        /// `[batch]` u32: lengths of keys.
        kv_lens: Option<Tensor>,
        /// Attention weights, where the problem has them.
        weights: Option<Tensor>,
        /// As the problem says.
        out: Tensor,
    },
    /// The mean of a sequence's rows, one long.
    Pool {
        /// `[batch, seq_len, width]`.
        x: Tensor,
        /// `[batch]` u32.
        lens: Tensor,
        /// Rows of a sequence.
        seq_len: usize,
        /// `[batch, width]`.
        out: Tensor,
    },
    /// The next token: greedy, or drawn.
    Choose {
        /// `[vocabulary]`; may be overwritten.
        logits: Tensor,
        /// How.
        sampling: Sampling,
        /// `[1]` u32: tokens chosen so far.
        step: Tensor,
        /// `[1]` u32.
        token: Tensor,
    },
}

/// Positions that are added to embeddings.
#[derive(Clone, Debug)]
#[allow(clippy::exhaustive_structs, reason = "filled in by field name")]
pub struct Positions {
    /// `[positions, width]`.
    pub table: Tensor,
    /// `[1]` u32: where row 0 of a sequence stands.
    pub start: Tensor,
    /// Rows of a sequence.
    pub seq_len: usize,
}

/// What happens to a sum before it is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(clippy::exhaustive_enums, reason = "one file a variant")]
pub enum Finish {
    /// Nothing.
    Store,
    /// It is added to what is there: a residual.
    Add,
    /// `max(y, 0)`.
    Relu,
    /// `y` times the share of a normal distribution below `y`.
    Gelu,
}

/// How tokens are chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
#[allow(clippy::exhaustive_enums, reason = "there are two ways")]
pub enum Sampling {
    /// The most probable one.
    Greedy,
    /// One of the most probable that together have `top_p`.
    Random {
        /// Above 0; 1 leaves the model's probabilities as they are.
        temperature: f32,
        /// Above 0, 1 at most.
        top_p: f32,
        /// The same seed draws the same tokens.
        seed: u32,
    },
}
