//! What to compute, independent of any device or buffer.

use crate::error::ProblemError;
use std::ops::Range;

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

    /// Query heads that share one key/value head.
    pub const fn group_size(&self) -> u32 {
        self.heads / self.kv_heads
    }
}

/// Where the diagonal of a causal mask or window runs when `q_len != kv_len`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Diagonal {
    /// Query `i` stands at key `i + kv_len - q_len`: the last query sees the last key.
    #[default]
    BottomRight,
    /// Query `i` stands at key `i`.
    TopLeft,
    /// Query `i` stands at key `i + offset`.
    Offset(i32),
}

/// The band of keys that a query may see, both ends inclusive.
///
/// ```text
///          BottomRight, q_len 3, kv_len 5        TopLeft
/// full     x x x x x / x x x x x / x x x x x     the same
/// causal   x x x . . / x x x x . / x x x x x     x . . . . / x x . . . / x x x . .
/// window 1 . x x . . / . . x x . / . . . x x     x . . . . / x x . . . / . x x . .
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Mask {
    /// How many keys before its own position a query sees; `None` is all.
    pub left: Option<u32>,
    /// How many keys after its own position a query sees; `None` is all, `Some(0)` is causal.
    pub right: Option<u32>,
    /// What a query's own position is.
    pub diagonal: Diagonal,
}

impl Mask {
    /// Every key is visible.
    pub const FULL: Self = Self { left: None, right: None, diagonal: Diagonal::BottomRight };
    /// No key after the query.
    pub const CAUSAL: Self = Self { right: Some(0), ..Self::FULL };

    /// At most `left` keys before the query's own position and `right` after it.
    pub const fn band(left: Option<u32>, right: Option<u32>) -> Self {
        Self { left, right, ..Self::FULL }
    }

    /// Causal, and at most `left` keys before the query's own position: `left + 1` keys in all.
    pub const fn window(left: u32) -> Self {
        Self { left: Some(left), ..Self::CAUSAL }
    }

    /// Causal, `width` keys in all, as model configurations count it: the token itself is one.
    ///
    /// # Errors
    /// [`ProblemError::EmptyWindow`] when `width` is 0.
    pub const fn from_sliding_window(width: u32) -> Result<Self, ProblemError> {
        match width.checked_sub(1) {
            Some(left) => Ok(Self::window(left)),
            None => Err(ProblemError::EmptyWindow),
        }
    }

    /// The same band along another diagonal.
    #[must_use]
    pub const fn along(self, diagonal: Diagonal) -> Self {
        Self { diagonal, ..self }
    }

    /// Whether every query sees every key.
    pub const fn is_full(&self) -> bool {
        self.left.is_none() && self.right.is_none()
    }

    /// Keys visible to query `q_pos`: the definition that every kernel is tested against.
    pub fn kv_range(&self, shape: &Shape, q_pos: u32) -> Range<u32> {
        let (begin, end) = self.bounds(shape);
        let clamp = |x: i64| {
            u32::try_from(x.clamp(0, i64::from(shape.kv_len))).expect("clamped to a length")
        };
        let start = begin.map_or(0, |begin| clamp(i64::from(q_pos) + begin));
        let end = end.map_or(shape.kv_len, |end| clamp(i64::from(q_pos) + end));
        start..end.max(start)
    }

    /// First visible key and one past the last, relative to the query's index; `None` is open.
    pub(crate) fn bounds(&self, shape: &Shape) -> (Option<i64>, Option<i64>) {
        let diagonal = match self.diagonal {
            Diagonal::BottomRight => i64::from(shape.kv_len) - i64::from(shape.q_len),
            Diagonal::TopLeft => 0,
            Diagonal::Offset(offset) => i64::from(offset),
        };
        (
            self.left.map(|left| diagonal - i64::from(left)),
            self.right.map(|right| diagonal + i64::from(right) + 1),
        )
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

/// Distances between neighbours along the outer axes of a tensor, in elements. The innermost axis
/// (`head_dim`) is contiguous. A stride of 0 repeats an input along its axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(clippy::exhaustive_structs, reason = "a tensor of rank 4 has three outer axes")]
pub struct Strides {
    /// From one sequence to the next.
    pub batch: u64,
    /// From one head to the next.
    pub head: u64,
    /// From one position to the next.
    pub row: u64,
}

impl Strides {
    /// Contiguous `[batch, heads, len, dim]`.
    pub const fn bhsd(heads: u32, len: u32, dim: u32) -> Self {
        let head = len as u64 * dim as u64;
        Self { batch: head.saturating_mul(heads as u64), head, row: dim as u64 }
    }

    /// Contiguous `[batch, len, heads, dim]`.
    pub const fn bshd(heads: u32, len: u32, dim: u32) -> Self {
        let row = heads as u64 * dim as u64;
        Self { batch: row.saturating_mul(len as u64), head: dim as u64, row }
    }

    /// Elements from the first to one past the last of `[batch, heads, len, dim]`; `None` past u64.
    pub(crate) fn extent(&self, batch: u32, heads: u32, len: u32, dim: u32) -> Option<u64> {
        if batch == 0 || heads == 0 || len == 0 {
            return Some(0);
        }
        let span = |n: u32, stride: u64| u64::from(n - 1).checked_mul(stride);
        span(batch, self.batch)?
            .checked_add(span(heads, self.head)?)?
            .checked_add(span(len, self.row)?)?
            .checked_add(u64::from(dim))
    }

    /// Whether no two elements of `[batch, heads, len, dim]` share a place.
    fn is_injective(&self, batch: u32, heads: u32, len: u32, dim: u32) -> bool {
        if batch == 0 || heads == 0 || len == 0 {
            return true;
        }
        let mut axes = [(self.batch, batch), (self.head, heads), (self.row, len)];
        axes.sort_unstable();
        let mut span = u128::from(dim);
        axes.iter().filter(|(_, n)| *n > 1).all(|&(stride, n)| {
            let fits = u128::from(stride) >= span;
            span += u128::from(n - 1) * u128::from(stride);
            fits
        })
    }
}

/// Common orders of the outer axes; the width of a head is innermost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Layout {
    /// `[batch, heads, len, head_dim]`.
    #[default]
    Bhsd,
    /// `[batch, len, heads, head_dim]`.
    Bshd,
    /// q, k and v side by side in one buffer, `[batch, len, heads * head_dim + kv_heads * head_dim +
    /// kv_heads * v_head_dim]`, each a slice that starts at its first column and ends with the
    /// buffer; out as [`Bshd`](Self::Bshd).
    PackedQkv,
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
