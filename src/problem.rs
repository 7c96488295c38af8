//! What to compute, independent of any device or buffer.

use crate::error::ProblemError;
use crate::layout::{Layout, Strides};
use crate::mask::Mask;

/// Longest sequence that position arithmetic in the shaders is proven for.
pub(crate) const MAX_LEN: u32 = 1 << 29;

/// Extents of one attention problem.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Shape {
    /// Independent sequences.
    pub batch: u32,
    /// Query heads.
    pub heads: u32,
    /// Key/value heads; divides `heads`. Equal for MHA, fewer for GQA, one for MQA.
    pub kv_heads: u32,
    /// Query positions of a sequence.
    pub q_len: u32,
    /// Key positions of a sequence.
    pub kv_len: u32,
    /// Width of a query and of a key.
    pub head_dim: u32,
    /// Width of a value and of an output row.
    pub v_head_dim: u32,
}

impl Shape {
    /// Queries, keys and values from the same `seq_len` positions; one key/value head a query head.
    pub const fn self_attention(batch: u32, heads: u32, seq_len: u32, head_dim: u32) -> Self {
        Self::cross_attention(batch, heads, seq_len, seq_len, head_dim)
    }

    /// `q_len` queries from one sequence, `kv_len` keys and values from another.
    pub const fn cross_attention(
        batch: u32,
        heads: u32,
        q_len: u32,
        kv_len: u32,
        head_dim: u32,
    ) -> Self {
        Self { batch, heads, kv_heads: heads, q_len, kv_len, head_dim, v_head_dim: head_dim }
    }

    /// The same shape with grouped key/value heads.
    #[must_use]
    pub const fn with_kv_heads(self, kv_heads: u32) -> Self {
        Self { kv_heads, ..self }
    }

    /// The same shape with values of another width.
    #[must_use]
    pub const fn with_v_head_dim(self, v_head_dim: u32) -> Self {
        Self { v_head_dim, ..self }
    }

    /// Query heads that share one key/value head; 0 of none.
    pub const fn group_size(&self) -> u32 {
        match self.heads.checked_div(self.kv_heads) {
            Some(size) => size,
            None => 0,
        }
    }
}

/// Storage type of a tensor. Accumulation is always f32.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum DType {
    /// 32-bit float.
    #[default]
    F32,
    /// 16-bit float. Not supported yet.
    F16,
    /// 16-bit brain float. Not supported yet.
    BF16,
}

impl DType {
    /// Bytes of one element.
    pub const fn bytes(self) -> u64 {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::BF16 => 2,
        }
    }
}

/// One attention problem: `out = softmax(scale * q k^T + mask) v`, for every sequence and head.
///
/// Options that say "not supported yet" are accepted here and rejected by planning with
/// [`PlanError::NotSupported`](crate::PlanError::NotSupported): none is ignored.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Problem {
    /// Extents.
    pub shape: Shape,
    /// Which keys a query sees.
    pub mask: Mask,
    /// Factor on `q . k`; `None` is `1 / sqrt(head_dim)`. 0 and negative values are allowed.
    pub scale: Option<f32>,
    /// `softcap * tanh(score / softcap)` when set. Not supported yet.
    pub softcap: Option<f32>,
    /// Storage type of q, k, v and out.
    pub dtype: DType,
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
    /// A boolean mask is given. Not supported yet.
    pub boolean_mask: bool,
    /// An additive bias of this type is given. Not supported yet.
    pub bias: Option<DType>,
    /// ALiBi slopes are given. Not supported yet.
    pub alibi: bool,
    /// Attention sinks are given. Not supported yet.
    pub sinks: bool,
    /// Lengths of every sequence are given in buffers. Not supported yet.
    pub lengths: bool,
    /// Probability to drop a weight. Not supported yet.
    pub dropout: Option<f32>,
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
            q: contiguous,
            k: contiguous,
            v: contiguous,
            out: contiguous,
            lse: false,
            weights: false,
            boolean_mask: false,
            bias: None,
            alibi: false,
            sinks: false,
            lengths: false,
            dropout: None,
        }
        .layout(Layout::Bhsd)
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

    /// Sets the soft cap. Not supported yet.
    #[must_use]
    pub fn softcap(self, softcap: f32) -> Self {
        Self { softcap: Some(softcap), ..self }
    }

    /// Sets the storage type of q, k, v and out.
    #[must_use]
    pub fn dtype(self, dtype: DType) -> Self {
        Self { dtype, ..self }
    }

    /// Sets the strides of q, k, v and out to those of a common layout.
    #[must_use]
    pub fn layout(self, layout: Layout) -> Self {
        let Shape { heads, kv_heads, q_len, kv_len, head_dim, v_head_dim, .. } = self.shape;
        match layout {
            Layout::Bhsd => Self {
                q: Strides::bhsd(heads, q_len, head_dim),
                k: Strides::bhsd(kv_heads, kv_len, head_dim),
                v: Strides::bhsd(kv_heads, kv_len, v_head_dim),
                out: Strides::bhsd(heads, q_len, v_head_dim),
                ..self
            },
            Layout::Bshd => Self {
                q: Strides::bshd(heads, q_len, head_dim),
                k: Strides::bshd(kv_heads, kv_len, head_dim),
                v: Strides::bshd(kv_heads, kv_len, v_head_dim),
                out: Strides::bshd(heads, q_len, v_head_dim),
                ..self
            },
            Layout::PackedQkv => {
                let row = u64::from(heads) * u64::from(head_dim)
                    + u64::from(kv_heads) * (u64::from(head_dim) + u64::from(v_head_dim));
                let view = |len: u32, head: u32| Strides {
                    batch: row.saturating_mul(len.into()),
                    head: head.into(),
                    row,
                };
                Self {
                    q: view(q_len, head_dim),
                    k: view(kv_len, head_dim),
                    v: view(kv_len, v_head_dim),
                    out: Strides::bshd(heads, q_len, v_head_dim),
                    ..self
                }
            }
        }
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

    /// A boolean mask is given. Not supported yet.
    #[must_use]
    pub fn with_boolean_mask(self) -> Self {
        Self { boolean_mask: true, ..self }
    }

    /// An additive bias is given. Not supported yet.
    #[must_use]
    pub fn with_bias(self, dtype: DType) -> Self {
        Self { bias: Some(dtype), ..self }
    }

    /// ALiBi slopes are given. Not supported yet.
    #[must_use]
    pub fn with_alibi(self) -> Self {
        Self { alibi: true, ..self }
    }

    /// Attention sinks are given. Not supported yet.
    #[must_use]
    pub fn with_sinks(self) -> Self {
        Self { sinks: true, ..self }
    }

    /// Lengths of every sequence are given in buffers. Not supported yet.
    #[must_use]
    pub fn with_lengths(self) -> Self {
        Self { lengths: true, ..self }
    }

    /// Drops weights with probability `p`. Not supported yet.
    #[must_use]
    pub fn dropout(self, p: f32) -> Self {
        Self { dropout: Some(p), ..self }
    }

    /// The factor on `q . k`, with its default.
    pub fn effective_scale(&self) -> f32 {
        #[allow(clippy::cast_possible_truncation, reason = "rounded once, from f64")]
        let default = || (1.0 / f64::from(self.shape.head_dim).sqrt()) as f32;
        self.scale.unwrap_or_else(default)
    }

    /// The name of a requested option that is not built yet.
    pub(crate) fn unsupported(&self) -> Option<&'static str> {
        [
            (self.softcap.is_some(), "softcap"),
            (self.dtype == DType::F16, "dtype f16"),
            (self.dtype == DType::BF16, "dtype bf16"),
            (self.boolean_mask, "a boolean mask"),
            (self.bias.is_some(), "bias"),
            (self.alibi, "alibi"),
            (self.sinks, "sinks"),
            (self.lengths, "lengths"),
            (self.dropout.is_some(), "dropout"),
        ]
        .into_iter()
        .find_map(|(asked, name)| asked.then_some(name))
    }

    /// Checks everything that can be checked without a device.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn validate(&self) -> Result<(), ProblemError> {
        let s = self.shape;
        for (axis, extent) in [
            ("heads", s.heads),
            ("kv_heads", s.kv_heads),
            ("head_dim", s.head_dim),
            ("v_head_dim", s.v_head_dim),
        ] {
            if extent == 0 {
                return Err(ProblemError::EmptyAxis { axis });
            }
        }
        if !s.heads.is_multiple_of(s.kv_heads) {
            return Err(ProblemError::UngroupedHeads { heads: s.heads, kv_heads: s.kv_heads });
        }
        for (axis, len) in [
            ("q_len", s.q_len),
            ("kv_len", s.kv_len),
            ("head_dim", s.head_dim),
            ("v_head_dim", s.v_head_dim),
        ] {
            if len > MAX_LEN {
                return Err(ProblemError::TooLong { axis, len, max: MAX_LEN });
            }
        }
        if let Some(scale) = self.scale.filter(|scale| !scale.is_finite()) {
            return Err(ProblemError::Scale { scale });
        }
        if let Some(softcap) = self.softcap.filter(|cap| !cap.is_finite() || *cap <= 0.0) {
            return Err(ProblemError::Softcap { softcap });
        }
        if let Some(p) = self.dropout.filter(|p| !(0.0..1.0).contains(p)) {
            return Err(ProblemError::Dropout { p });
        }
        for (tensor, strides, heads, len, dim) in [
            ("q", self.q, s.heads, s.q_len, s.head_dim),
            ("k", self.k, s.kv_heads, s.kv_len, s.head_dim),
            ("v", self.v, s.kv_heads, s.kv_len, s.v_head_dim),
            ("out", self.out, s.heads, s.q_len, s.v_head_dim),
        ] {
            let bytes = strides
                .extent(s.batch, heads, len, dim)
                .and_then(|elements| elements.checked_mul(self.dtype.bytes()));
            if bytes.is_none_or(|bytes| bytes > i64::MAX.unsigned_abs()) {
                return Err(ProblemError::Unaddressable { tensor });
            }
        }
        if !self.out.is_injective(s.batch, s.heads, s.q_len, s.v_head_dim) {
            return Err(ProblemError::OverlappingRows { tensor: "out", strides: self.out });
        }
        Ok(())
    }
}
