//! The caller's buffers, and their checks.

use crate::error::BindError;
use crate::plan::Plan;
use wgpu::{BufferSlice, BufferUsages};

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
    /// Input vectors of a layer.
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
            Self::Workspace(_) => "workspace",
        }
    }
}

/// Slices of the caller's buffers, one an operand.
///
/// A slice may start at any multiple of its element's size and be longer than needed. Buffers need
/// [`STORAGE`](BufferUsages::STORAGE) only. Inputs may share a buffer or even bytes; an output overlaps
/// nothing. An operand without elements, because an axis is 0, may be left out.
#[derive(Clone, Debug, Default)]
pub struct Tensors<'a> {
    slices: Vec<(Operand, BufferSlice<'a>)>,
    workspace: Option<BufferSlice<'a>>,
}

/// One builder method an operand.
macro_rules! operands {
    ($($(#[$meta:meta])* $name:ident: $operand:ident),* $(,)?) => {
        $($(#[$meta])* #[must_use] pub fn $name(self, slice: BufferSlice<'a>) -> Self {
            self.with(Operand::$operand, slice)
        })*
    };
}

impl<'a> Tensors<'a> {
    /// The operands of every attention; shapes as the problem's layout says.
    pub fn new(
        q: BufferSlice<'a>,
        k: BufferSlice<'a>,
        v: BufferSlice<'a>,
        out: BufferSlice<'a>,
    ) -> Self {
        Self::default().q(q).k(k).v(v).out(out)
    }

    operands! {
        /// `[batch, heads, q_len, head_dim]`.
        q: Q,
        /// `[batch, kv_heads, kv_len, head_dim]`.
        k: K,
        /// `[batch, kv_heads, kv_len, v_head_dim]`.
        v: V,
        /// `[batch, heads, q_len, v_head_dim]`, or of a layer `[batch, q_len, out_dim]`; overwritten.
        out: Out,
        /// `[batch, heads, q_len]` f32, overwritten. Needed when the problem has `lse`.
        lse: Lse,
        /// `[batch, heads, q_len, kv_len]` f32, overwritten. Needed when the problem has `weights`.
        weights: Weights,
        /// `[batch, q_len, model_dim]`.
        x: X,
        /// `[batch, kv_len, context_dim]`. Needed by cross-attention layers.
        context: Context,
        /// `[heads * head_dim, model_dim]`.
        w_q: WQ,
        /// `[kv_heads * head_dim, context_dim]`.
        w_k: WK,
        /// `[kv_heads * v_head_dim, context_dim]`.
        w_v: WV,
        /// `[heads * head_dim + kv_heads * head_dim + kv_heads * v_head_dim, model_dim]`.
        w_qkv: WQkv,
        /// `[out_dim, heads * v_head_dim]`.
        w_o: WO,
        /// `[heads * head_dim]`.
        b_q: BQ,
        /// `[kv_heads * head_dim]`.
        b_k: BK,
        /// `[kv_heads * v_head_dim]`.
        b_v: BV,
        /// `[heads * head_dim + kv_heads * head_dim + kv_heads * v_head_dim]`.
        b_qkv: BQkv,
        /// `[out_dim]`.
        b_o: BO,
    }

    /// Scratch of [`Plan::workspace_bytes`]; without it `bind` creates its own. One at a time may use it.
    #[must_use]
    pub fn workspace(self, slice: BufferSlice<'a>) -> Self {
        Self { workspace: Some(slice), ..self }
    }

    /// Gives `slice` as `operand`.
    pub(crate) fn with(mut self, operand: Operand, slice: BufferSlice<'a>) -> Self {
        self.slices.retain(|(other, _)| *other != operand);
        self.slices.push((operand, slice));
        self
    }

    /// The slice given as `operand`.
    pub(crate) fn get(&self, operand: Operand) -> Option<BufferSlice<'a>> {
        self.slices.iter().find(|(other, _)| *other == operand).map(|(_, slice)| *slice)
    }

    /// The scratch given.
    pub(crate) fn given_workspace(&self) -> Option<BufferSlice<'a>> {
        self.workspace
    }

    /// Checks everything that `plan` asks of the slices.
    pub(crate) fn check(&self, plan: &Plan) -> Result<(), BindError> {
        let mut used = Vec::new();
        for (operand, required, written) in plan.operands() {
            let tensor = operand.name();
            let slice = self.get(operand).ok_or(BindError::Missing { tensor })?;
            used.push(Used { tensor, slice, required, written }.checked()?);
        }
        let workspace = plan.workspace_bytes();
        match self.workspace {
            Some(slice) if workspace > 0 => {
                let all = Used { tensor: "workspace", slice, required: workspace, written: true };
                used.push(all.checked()?);
            }
            _ => {}
        }
        for (i, output) in used.iter().enumerate().filter(|(_, operand)| operand.written) {
            for (j, other) in used.iter().enumerate() {
                if i != j && output.overlaps(other) {
                    return Err(BindError::Overlap { output: output.tensor, other: other.tensor });
                }
            }
        }
        // An operand without elements is welcome; one that no kernel of this plan reads is a mistake.
        for (operand, _) in &self.slices {
            if !plan.knows(*operand) {
                return Err(BindError::Unused { tensor: operand.name() });
            }
        }
        Ok(())
    }
}

/// A slice and what a plan does with it.
struct Used<'a> {
    tensor: &'static str,
    slice: BufferSlice<'a>,
    required: u64,
    written: bool,
}

impl Used<'_> {
    fn checked(self) -> Result<Self, BindError> {
        let Self { tensor, slice, required, .. } = self;
        if slice.size() < required {
            return Err(BindError::TooSmall { tensor, required, actual: slice.size() });
        }
        if !slice.buffer().usage().contains(BufferUsages::STORAGE) {
            return Err(BindError::MissingUsage { tensor, missing: BufferUsages::STORAGE });
        }
        let alignment = crate::blocks::ELEMENT_BYTES;
        if !slice.offset().is_multiple_of(alignment) {
            return Err(BindError::Misaligned { tensor, offset: slice.offset(), alignment });
        }
        Ok(self)
    }

    fn overlaps(&self, other: &Self) -> bool {
        let (a, b) = (self.slice, other.slice);
        a.buffer() == b.buffer()
            && a.offset() < b.offset() + other.required
            && b.offset() < a.offset() + self.required
    }
}
