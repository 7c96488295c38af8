//! What to compute, independent of any device or buffer.

use crate::dropout::{Dropout, DropoutMask};
use crate::error::ProblemError;
use crate::function::{self, MaskFunction, ScoreFunction};
use crate::layout::{Layout, Strides};
use crate::mask::{Diagonal, Mask};
use crate::matrices::MatrixInputs;
use crate::pages::Pages;
use crate::pairs::{Bias, BooleanMask, MaskFormat, Pairs};
use crate::shape::{DType, Shape};
use std::sync::Arc;

/// Where sequences end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Lengths {
    /// All of them where the shape says.
    #[default]
    Full,
    /// Each at a length of its own, in buffers `[batch]` u32. What lies past it may hold anything.
    PerSequence {
        /// `q_lens` is given.
        q: bool,
        /// `kv_lens` is given.
        kv: bool,
    },
    /// One behind the other without gaps: `cu_seqlens_q` and `cu_seqlens_k`, `[batch + 1]` u32, say where each
    /// starts, and where the last ends. Strides along the batch are not used.
    Packed,
}

/// Slopes of ALiBi.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Slopes {
    /// `[heads]` f32.
    PerHead,
    /// `[batch, heads]` f32.
    PerSequence,
}

impl Slopes {
    /// Index of the slope of a sequence's head.
    pub(crate) fn index(self, shape: &Shape, batch: u32, head: u32) -> usize {
        let first = match self {
            Self::PerHead => 0,
            Self::PerSequence => batch as usize * shape.heads as usize,
        };
        first + head as usize
    }

    /// How many there are.
    pub(crate) fn count(self, shape: &Shape) -> u64 {
        match self {
            Self::PerHead => shape.heads.into(),
            Self::PerSequence => u64::from(shape.batch) * u64::from(shape.heads),
        }
    }
}

/// At which stage scores are handed out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ScoreStage {
    /// After scaling: for every pair within the lengths.
    Raw,
    /// After the soft cap too: for every pair within the lengths.
    Capped,
    /// After biases and masks: -inf where a pair is hidden.
    Biased,
}

/// One attention problem: `out = softmax(scale * q k^T + bias) v` over visible keys, for every sequence and head.
///
/// In this order: scale, soft cap, ALiBi, bias, the caller's score function, masks, softmax (with its sink), dropout.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Problem {
    /// Extents.
    pub shape: Shape,
    /// The band of keys that a query sees.
    pub mask: Mask,
    /// Factor on `q . k`; `None` is `1 / sqrt(head_dim)`. 0 and negative values are allowed.
    pub scale: Option<f32>,
    /// `softcap * tanh(score / softcap)` when set, before every bias and mask; finite and above 0.
    pub softcap: Option<f32>,
    /// Storage type of q.
    pub dtype: DType,
    /// Storage type of k and v.
    pub kv_dtype: DType,
    /// Storage type of out.
    pub out_dtype: DType,
    /// Strides of q.
    pub q: Strides,
    /// Strides of k.
    pub k: Strides,
    /// Strides of v.
    pub v: Strides,
    /// Strides of out.
    pub out: Strides,
    /// Also write the log-sum-exp of every row.
    pub lse: bool,
    /// Also write the attention weights.
    pub weights: bool,
    /// Also write the scores.
    pub scores: Option<ScoreStage>,
    /// A boolean mask is given.
    pub boolean_mask: Option<BooleanMask>,
    /// An additive bias is given.
    pub bias: Option<Bias>,
    /// ALiBi slopes are given.
    pub alibi: Option<Slopes>,
    /// Attention sinks are given.
    pub sinks: bool,
    /// Where sequences end.
    pub lengths: Lengths,
    /// The caller's own function of a score.
    pub score_function: Option<ScoreFunction>,
    /// The caller's own function that hides pairs.
    pub mask_function: Option<MaskFunction>,
    /// A block mask made earlier is given.
    pub block_mask: bool,
    /// Keys and values lie in pages.
    pub pages: Option<Pages>,
    /// Into how many ranges keys are split at most; `None` is as many as keep the device busy.
    pub splits: Option<u32>,
    /// Results of a sequence do not depend on the batch around it.
    pub batch_invariant: bool,
    /// Which inputs may be rounded to f16 for matrix units.
    pub matrix_inputs: MatrixInputs,
    /// Weights are dropped.
    pub dropout: Option<Dropout>,
}

impl Problem {
    /// Attention of every query over every key, f32, contiguous `[batch, heads, len, head_dim]`.
    pub fn new(shape: Shape) -> Self {
        let contiguous = Strides { batch: 0, head: 0, row: 0 };
        Self {
            shape,
            mask: Mask::FULL,
            scale: None,
            softcap: None,
            dtype: DType::F32,
            kv_dtype: DType::F32,
            out_dtype: DType::F32,
            q: contiguous,
            k: contiguous,
            v: contiguous,
            out: contiguous,
            lse: false,
            weights: false,
            scores: None,
            boolean_mask: None,
            bias: None,
            alibi: None,
            sinks: false,
            lengths: Lengths::Full,
            score_function: None,
            mask_function: None,
            block_mask: false,
            pages: None,
            splits: None,
            batch_invariant: false,
            matrix_inputs: MatrixInputs::AsStored,
            dropout: None,
        }
        .layout(Layout::Bhsd)
    }

    /// `batch` sequences behind one another, `q_tokens` queries and `kv_tokens` keys in all, as `shape.q_len` and
    /// `shape.kv_len` say; q, k, v and out are `[tokens, heads, head_dim]`, lse is `[heads, tokens]`.
    pub fn packed(shape: Shape) -> Self {
        Self { lengths: Lengths::Packed, ..Self::new(shape) }.layout(Layout::Bshd)
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

    /// Sets the soft cap: `softcap * tanh(score / softcap)`, before every bias and mask.
    #[must_use]
    pub fn softcap(self, softcap: f32) -> Self {
        Self { softcap: Some(softcap), ..self }
    }

    /// Sets the storage type of q, k, v and out.
    #[must_use]
    pub fn dtype(self, dtype: DType) -> Self {
        Self { dtype, kv_dtype: dtype, out_dtype: dtype, ..self }
    }

    /// Sets the storage type of k and v.
    #[must_use]
    pub fn kv_dtype(self, kv_dtype: DType) -> Self {
        Self { kv_dtype, ..self }
    }

    /// Sets the storage type of out.
    #[must_use]
    pub fn out_dtype(self, out_dtype: DType) -> Self {
        Self { out_dtype, ..self }
    }

    /// Sets the strides of q.
    #[must_use]
    pub fn q_strides(self, q: Strides) -> Self {
        Self { q, ..self }
    }

    /// Sets the strides of k.
    #[must_use]
    pub fn k_strides(self, k: Strides) -> Self {
        Self { k, ..self }
    }

    /// Sets the strides of v.
    #[must_use]
    pub fn v_strides(self, v: Strides) -> Self {
        Self { v, ..self }
    }

    /// Sets the strides of out.
    #[must_use]
    pub fn out_strides(self, out: Strides) -> Self {
        Self { out, ..self }
    }

    /// Also write the log-sum-exp of every row, f32 `[batch, heads, q_len]`, natural log.
    #[must_use]
    pub fn with_lse(self) -> Self {
        Self { lse: true, ..self }
    }

    /// Also write the attention weights, f32 `[batch, heads, q_len, kv_len]`, exactly 0 where a key
    /// is not visible. Only the staged kernels have them.
    #[must_use]
    pub fn with_weights(self) -> Self {
        Self { weights: true, ..self }
    }

    /// Also write the scores, f32 `[batch, heads, q_len, kv_len]`, -inf where there is none. Only the staged kernels
    /// have them.
    #[must_use]
    pub fn with_scores(self, stage: ScoreStage) -> Self {
        Self { scores: Some(stage), ..self }
    }

    /// A boolean mask is given, in which true attends.
    #[must_use]
    pub fn with_boolean_mask(self, format: MaskFormat, pairs: Pairs) -> Self {
        Self { boolean_mask: Some(BooleanMask { pairs, format }), ..self }
    }

    /// An additive bias is given, whatever the type of q.
    #[must_use]
    pub fn with_bias(self, dtype: DType, pairs: Pairs) -> Self {
        Self { bias: Some(Bias { pairs, dtype }), ..self }
    }

    /// ALiBi slopes are given: `-slope * |i + offset - j|` is added, where the offset is the mask's diagonal. See
    /// [Train Short, Test Long](https://arxiv.org/abs/2108.12409), and [`alibi_slopes`](crate::alibi_slopes).
    #[must_use]
    pub fn with_alibi(self, slopes: Slopes) -> Self {
        Self { alibi: Some(slopes), ..self }
    }

    /// Attention sinks are given, f32 `[heads]`: `exp(sink)` joins the sum of every row, and no value with it. A sink
    /// of -inf is none. See [Efficient Streaming Language Models](https://arxiv.org/abs/2309.17453).
    #[must_use]
    pub fn with_sinks(self) -> Self {
        Self { sinks: true, ..self }
    }

    /// Lengths of queries, of keys, or of both are given, one a sequence.
    #[must_use]
    pub fn with_lengths(self, q: bool, kv: bool) -> Self {
        let lengths = if q || kv { Lengths::PerSequence { q, kv } } else { Lengths::Full };
        Self { lengths, ..self }
    }

    /// Changes every score by the caller's own function.
    #[must_use]
    pub fn with_score_function(self, function: ScoreFunction) -> Self {
        Self { score_function: Some(function), ..self }
    }

    /// Hides pairs by the caller's own function.
    #[must_use]
    pub fn with_mask_function(self, function: MaskFunction) -> Self {
        Self { mask_function: Some(function), ..self }
    }

    /// A block mask is given, as [`Attention::plan_block_mask`](crate::Attention::plan_block_mask) makes it for this
    /// problem: tiles are classified once and not at every call.
    #[must_use]
    pub fn with_block_mask(self) -> Self {
        Self { block_mask: true, ..self }
    }

    /// Keys and values lie in pages of a pool: k is `[pages, page_len, kv_heads, head_dim]`, v the same with
    /// `v_head_dim`, and `block_table` says which page holds which positions. `kv_len` of the shape is the most
    /// positions that a sequence may have. Other orders of the axes are given by strides, of which `batch` is that of
    /// pages and `row` that of positions within one.
    #[must_use]
    pub fn with_pages(self, pages: Pages) -> Self {
        let Shape { kv_heads, head_dim, v_head_dim, .. } = self.shape;
        Self {
            pages: Some(pages),
            k: Strides::bshd(kv_heads, pages.page_len, head_dim),
            v: Strides::bshd(kv_heads, pages.page_len, v_head_dim),
            ..self
        }
    }

    /// Splits the keys of every row into so many ranges at most, whose partial results are merged: 1 for none.
    #[must_use]
    pub fn with_splits(self, splits: u32) -> Self {
        Self { splits: Some(splits), ..self }
    }

    /// Kernels, tiles and splits depend on the shape of one sequence only: its results have the same bits in every
    /// batch, and those of a prompt whole, in chunks and token by token, with keys up to the last of each. What it
    /// costs: few rows take the kernel of many. Of packed sequences only the staged kernels and the CPU path can
    /// promise that.
    #[must_use]
    pub fn batch_invariant(self) -> Self {
        Self { batch_invariant: true, ..self }
    }

    /// Lets inputs of more types go to matrix units, rounded as said there.
    #[must_use]
    pub fn matrix_inputs(self, matrix_inputs: MatrixInputs) -> Self {
        Self { matrix_inputs, ..self }
    }

    /// Drops weights with probability `p` in `[0, 1)`, by random numbers of a seed that is given. With `p` 0 the kernels
    /// are those without dropout, and the seed may be left out. lse and weights that are handed out are those before.
    #[must_use]
    pub fn with_dropout(self, p: f32) -> Self {
        Self { dropout: Some(Dropout { p, mask: DropoutMask::Seeded }), ..self }
    }

    /// Drops weights as if with probability `p` in `[0, 1)`, but those that a tensor `keep` does not keep. Only the
    /// staged kernels and the CPU path read it.
    #[must_use]
    pub fn with_given_dropout(self, p: f32) -> Self {
        Self { dropout: Some(Dropout { p, mask: DropoutMask::Given }), ..self }
    }

    /// The factor on `q . k`, with its default.
    pub fn effective_scale(&self) -> f32 {
        #[allow(clippy::cast_possible_truncation, reason = "rounded once, from f64")]
        let default = || (1.0 / f64::from(self.shape.head_dim).sqrt()) as f32;
        self.scale.unwrap_or_else(default)
    }

    /// The shape that tensors have: packed sequences are one.
    pub fn tensor_shape(&self) -> Shape {
        let batch = if self.lengths == Lengths::Packed {
            self.shape.batch.min(1)
        } else {
            self.shape.batch
        };
        Shape { batch, ..self.shape }
    }

    /// How many sequences, or pages, k and v have, and how many positions each.
    pub(crate) fn kv_extents(&self) -> (u32, u32) {
        let shape = self.tensor_shape();
        self.pages.map_or((shape.batch, shape.kv_len), |pages| (pages.pages, pages.page_len))
    }

    /// Whether only kernels whose sums do not depend on tiles will do: the fused one's tiles of packed sequences hold
    /// rows of several.
    pub(crate) fn needs_rows_alone(&self) -> bool {
        self.batch_invariant && self.lengths == Lengths::Packed
    }

    /// Whether any pair within the band may be hidden.
    pub(crate) fn hides_pairs(&self) -> bool {
        self.boolean_mask.is_some() || self.bias.is_some() || self.mask_function.is_some()
    }

    /// Whether what a row sees is known on the device alone.
    pub(crate) fn has_sequences(&self) -> bool {
        self.lengths != Lengths::Full || self.mask.diagonal == Diagonal::PerSequence
    }

    /// Name and element type of the buffers of the caller's functions.
    pub(crate) fn function_buffers(&self) -> Result<Vec<(Arc<str>, &'static str)>, ProblemError> {
        let score = self.score_function.iter().map(|function| &function.text);
        let mask = self.mask_function.iter().map(|function| &function.text);
        function::buffers(score.chain(mask))
    }

    /// The dropout, if it changes anything: with p 0, no random number drops a weight.
    pub(crate) fn drops(&self) -> Option<Dropout> {
        self.dropout.filter(|dropout| dropout.p > 0.0 || dropout.mask == DropoutMask::Given)
    }

    /// The extents of a given dropout mask.
    pub(crate) fn keep_pairs(&self) -> Option<Pairs> {
        let Shape { batch, heads, q_len, kv_len, .. } = self.shape;
        let given = self.dropout.is_some_and(|dropout| dropout.mask == DropoutMask::Given);
        given.then(|| Pairs::new([batch, heads, q_len, kv_len]))
    }
}
