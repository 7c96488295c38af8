//! Names of the buffers that plans bind.

/// A buffer that a plan binds, by its name in the formulas.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Operand {
    /// Queries.
    Q,
    /// Keys.
    K,
    /// Values.
    V,
    /// The result.
    Out,
    /// Log-sum-exp of every row.
    Lse,
    /// Attention weights.
    Weights,
    /// Scores.
    Scores,
    /// Boolean mask.
    Mask,
    /// Additive bias.
    Bias,
    /// Slopes of ALiBi.
    AlibiSlopes,
    /// Attention sinks.
    Sinks,
    /// Offsets of the diagonals.
    DiagOffsets,
    /// Lengths of queries.
    QLens,
    /// Lengths of keys.
    KvLens,
    /// Where packed sequences of queries start.
    CuSeqlensQ,
    /// Where packed sequences of keys start.
    CuSeqlensK,
    /// Which page holds which positions.
    BlockTable,
    /// Classes of tiles, made earlier.
    BlockMask,
    /// New rows of keys, to be appended.
    KNew,
    /// New rows of values, to be appended.
    VNew,
    /// How many of the new rows each sequence has.
    NewLens,
    /// How many of the new rows had no place.
    AppendStatus,
    /// Positions that sequences start at.
    PosOffsets,
    /// Cosines of the angles of a rotary embedding.
    Cos,
    /// Sines of the angles of a rotary embedding.
    Sin,
    /// Seed of dropout.
    Seed,
    /// Which weights dropout keeps.
    Keep,
    /// Gradient of the result.
    DOut,
    /// Gradient of the log-sum-exp.
    DLse,
    /// Gradient of the queries.
    DQ,
    /// Gradient of the keys.
    DK,
    /// Gradient of the values.
    DV,
    /// Gradient of the bias.
    DBias,
    /// Gradient of the sinks.
    DSinks,
    /// Gradient of the slopes of ALiBi.
    DAlibiSlopes,
    /// A buffer of the caller's functions, by index.
    Buffer(usize),
    /// Input vectors of a layer, or rows to be turned.
    X,
    /// Input vectors that a layer's keys and values come from, where they are not `X`.
    Context,
    /// Projection to queries.
    WQ,
    /// Projection to keys.
    WK,
    /// Projection to values.
    WV,
    /// Projection to queries, keys and values in one matrix.
    WQkv,
    /// Projection of the result.
    WO,
    /// Bias of the queries.
    BQ,
    /// Bias of the keys.
    BK,
    /// Bias of the values.
    BV,
    /// Bias of queries, keys and values in one vector.
    BQkv,
    /// Bias of the result.
    BO,
    /// What a layer keeps for its gradients.
    Saved,
    /// Gradient of a layer's input vectors.
    DX,
    /// Gradient of a layer's context vectors.
    DContext,
    /// Gradient of the projection to queries.
    DWQ,
    /// Gradient of the projection to keys.
    DWK,
    /// Gradient of the projection to values.
    DWV,
    /// Gradient of the projection to queries, keys and values.
    DWQkv,
    /// Gradient of the projection of the result.
    DWO,
    /// Gradient of the bias of the queries.
    DBQ,
    /// Gradient of the bias of the keys.
    DBK,
    /// Gradient of the bias of the values.
    DBV,
    /// Gradient of the bias of queries, keys and values.
    DBQkv,
    /// Gradient of the bias of the result.
    DBO,
    /// Partial results over ranges of keys.
    OutParts,
    /// Log-sum-exp of every row of partial results.
    LseParts,
    /// Scratch, by index.
    Workspace(usize),
}

impl Operand {
    /// Its name in errors.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Q => "q",
            Self::K => "k",
            Self::V => "v",
            Self::Out => "out",
            Self::Lse => "lse",
            Self::Weights => "weights",
            Self::Scores => "scores",
            Self::Mask => "mask",
            Self::Bias => "bias",
            Self::AlibiSlopes => "alibi_slopes",
            Self::Sinks => "sinks",
            Self::DiagOffsets => "diag_offsets",
            Self::QLens => "q_lens",
            Self::KvLens => "kv_lens",
            Self::CuSeqlensQ => "cu_seqlens_q",
            Self::CuSeqlensK => "cu_seqlens_k",
            Self::BlockTable => "block_table",
            Self::BlockMask => "block_mask",
            Self::KNew => "k_new",
            Self::VNew => "v_new",
            Self::NewLens => "new_lens",
            Self::AppendStatus => "append_status",
            Self::PosOffsets => "pos_offsets",
            Self::Cos => "cos",
            Self::Sin => "sin",
            Self::Seed => "seed",
            Self::Keep => "keep",
            Self::DOut => "d_out",
            Self::DLse => "d_lse",
            Self::DQ => "d_q",
            Self::DK => "d_k",
            Self::DV => "d_v",
            Self::DBias => "d_bias",
            Self::DSinks => "d_sinks",
            Self::DAlibiSlopes => "d_alibi_slopes",
            Self::Buffer(_) => "buffer",
            Self::X => "x",
            Self::Context => "context",
            Self::WQ => "w_q",
            Self::WK => "w_k",
            Self::WV => "w_v",
            Self::WQkv => "w_qkv",
            Self::WO => "w_o",
            Self::BQ => "b_q",
            Self::BK => "b_k",
            Self::BV => "b_v",
            Self::BQkv => "b_qkv",
            Self::BO => "b_o",
            Self::Saved => "saved",
            Self::DX => "d_x",
            Self::DContext => "d_context",
            Self::DWQ => "d_w_q",
            Self::DWK => "d_w_k",
            Self::DWV => "d_w_v",
            Self::DWQkv => "d_w_qkv",
            Self::DWO => "d_w_o",
            Self::DBQ => "d_b_q",
            Self::DBK => "d_b_k",
            Self::DBV => "d_b_v",
            Self::DBQkv => "d_b_qkv",
            Self::DBO => "d_b_o",
            Self::OutParts => "out_parts",
            Self::LseParts => "lse_parts",
            Self::Workspace(_) => "workspace",
        }
    }
}
