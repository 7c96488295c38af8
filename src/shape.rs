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
