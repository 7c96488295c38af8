//! Extents and storage types.

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
    /// Query positions of a sequence; of packed sequences, of all together.
    pub q_len: u32,
    /// Key positions of a sequence; of packed sequences, of all together.
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
    /// 16-bit float. Two of a 32-bit word, the first lowest, where the device has no such type.
    F16,
    /// 16-bit brain float, the upper half of an f32. Two of a 32-bit word, the first lowest.
    BF16,
    /// Of k and v alone: blocks of 32 elements along `head_dim`, each of 9 words of 32 bits. The first holds the
    /// block's scale as f16 in its lower half and 0 in its upper; the others four i8 each, the first lowest:
    /// `x = scale * i8`. An element is off by at most half a scale, a 254th of the block's largest magnitude.
    Q8,
    /// Of k and v alone: blocks of 32 elements along `head_dim`, each of 5 words of 32 bits. The first holds the
    /// block's scale as f16 in its lower half and its minimum as f16 in its upper; the others eight numbers from 0 to
    /// 15 each, the first lowest: `x = minimum + scale * u4`. An element is off by at most half a scale, a 30th of
    /// what the block spans.
    Q4,
}

impl DType {
    /// Elements that share a scale.
    pub const BLOCK: u32 = 32;

    /// Bits of one element, its part of a scale among them.
    pub const fn bits(self) -> u64 {
        match self {
            Self::F32 => 32,
            Self::F16 | Self::BF16 => 16,
            Self::Q8 => 9,
            Self::Q4 => 5,
        }
    }

    /// Bytes of so many elements, whole blocks of them; `None` past u64.
    pub(crate) fn bytes_of(self, elements: u64) -> Option<u64> {
        // Tensors past 2^61 bytes are no buffer's.
        elements.checked_mul(self.bits()).map(|bits| bits.div_ceil(8))
    }

    /// Whether elements come in blocks that share a scale.
    pub const fn is_quantised(self) -> bool {
        matches!(self, Self::Q8 | Self::Q4)
    }
}
