//! The caller's buffers, and their checks.

use crate::error::BindError;
use crate::operand::Operand;
use crate::plan::Plan;
use std::borrow::Cow;
use wgpu::{BufferSlice, BufferUsages};

/// Slices of the caller's buffers, one an operand.
///
/// A slice may start at any multiple of its element's size and be longer than needed. Buffers need
/// [`STORAGE`](BufferUsages::STORAGE) only. Inputs may share a buffer or even bytes; an output overlaps
/// nothing. An operand without elements, because an axis is 0, may be left out.
#[derive(Clone, Debug, Default)]
pub struct Tensors<'a> {
    slices: Vec<(Operand, BufferSlice<'a>)>,
    /// Buffers of the caller's functions.
    named: Vec<(&'a str, BufferSlice<'a>)>,
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
        /// `[batch, heads, q_len, kv_len]` f32, overwritten. Needed when the problem has `scores`.
        scores: Scores,
        /// As the problem's boolean mask says: bytes, or bits of 32-bit words; a slice of bits starts at a word.
        mask: Mask,
        /// As the problem's bias says.
        bias: Bias,
        /// `[heads]` or `[batch, heads]` f32.
        alibi_slopes: AlibiSlopes,
        /// `[heads]` f32.
        sinks: Sinks,
        /// `[batch]` i32: query `i` stands at key `i + offset`.
        diag_offsets: DiagOffsets,
        /// `[batch]` u32. One past `q_len` counts as `q_len`.
        q_lens: QLens,
        /// `[batch]` u32. One past `kv_len` counts as `kv_len`. Appending adds what it appended.
        kv_lens: KvLens,
        /// `[batch + 1]` u32: starts at 0, never falls, ends at `q_len`. Nothing is read or written out of bounds
        /// where it does not, but results are not specified.
        cu_seqlens_q: CuSeqlensQ,
        /// `[batch + 1]` u32: starts at 0, never falls, ends at `kv_len`; else as `cu_seqlens_q`.
        cu_seqlens_k: CuSeqlensK,
        /// `[batch, ceil(kv_len / page_len)]` u32: the pages of each sequence in the order of its positions. What lies
        /// past its length may hold anything; a page that the pool does not have counts as its last.
        block_table: BlockTable,
        /// `[2]` u32: low word, high word of the seed of dropout.
        seed: Seed,
        /// `[batch, heads, q_len, kv_len]`, a byte a pair: anything but 0 is kept by dropout.
        keep: Keep,
        /// As `out`, or as the [`Backward`](crate::Backward) says.
        d_out: DOut,
        /// As `lse`. Needed when the [`Backward`](crate::Backward) has `d_lse`.
        d_lse: DLse,
        /// As `q`, or as the [`Backward`](crate::Backward) says; overwritten.
        d_q: DQ,
        /// As `k`, or as the [`Backward`](crate::Backward) says; overwritten.
        d_k: DK,
        /// As `v`, or as the [`Backward`](crate::Backward) says; overwritten.
        d_v: DV,
        /// The axes of the bias, contiguous, f32; overwritten.
        d_bias: DBias,
        /// `[heads]` f32, overwritten.
        d_sinks: DSinks,
        /// As `alibi_slopes`, overwritten.
        d_alibi_slopes: DAlibiSlopes,
        /// What [`Attention::plan_block_mask`](crate::Attention::plan_block_mask) makes, as its input or its output.
        block_mask: BlockMask,
        /// `[batch, new_len, kv_heads, head_dim]`, or as the [`Append`](crate::Append) says.
        k_new: KNew,
        /// `[batch, new_len, kv_heads, v_head_dim]`, or as the [`Append`](crate::Append) says.
        v_new: VNew,
        /// `[batch]` u32. One past `new_len` counts as `new_len`.
        new_lens: NewLens,
        /// `[batch]` u32, overwritten: 0 where all new rows have a place, else how many have none. Of a counted append
        /// read first.
        append_status: AppendStatus,
        /// `[batch]` u32: the position of row 0 of each sequence, or one past its last row where it is counted.
        pos_offsets: PosOffsets,
        /// `[positions, rotary_dim / 2]` f32: cosines of the angles of pairs.
        cos: Cos,
        /// `[positions, rotary_dim / 2]` f32: sines of the same angles.
        sin: Sin,
        /// `[batch, q_len, model_dim]`, or of a rotary embedding `[batch, heads, len, head_dim]`.
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
        /// What a layer [`with_saved`](crate::SelfAttention::with_saved) writes and its gradients read: as many bytes as
        /// [`Plan::operand_bytes`] of [`Operand::Saved`] says.
        saved: Saved,
        /// As `x`, overwritten.
        d_x: DX,
        /// As `context`, overwritten.
        d_context: DContext,
        /// As `w_q`, overwritten.
        d_w_q: DWQ,
        /// As `w_k`, overwritten.
        d_w_k: DWK,
        /// As `w_v`, overwritten.
        d_w_v: DWV,
        /// As `w_qkv`, overwritten.
        d_w_qkv: DWQkv,
        /// As `w_o`, overwritten.
        d_w_o: DWO,
        /// As `b_q`, overwritten.
        d_b_q: DBQ,
        /// As `b_k`, overwritten.
        d_b_k: DBK,
        /// As `b_v`, overwritten.
        d_b_v: DBV,
        /// As `b_qkv`, overwritten.
        d_b_qkv: DBQkv,
        /// As `b_o`, overwritten.
        d_b_o: DBO,
        /// `[parts, batch, heads, q_len, v_head_dim]`, or as [`Merge`](crate::Merge) lays them out.
        out_parts: OutParts,
        /// `[parts, batch, heads, q_len]` f32, or as [`Merge`](crate::Merge) lays them out.
        lse_parts: LseParts,
    }

    /// A buffer that a function of the caller's declares; the slice starts at a multiple of the device's
    /// `min_storage_buffer_offset_alignment`.
    #[must_use]
    pub fn buffer(mut self, name: &'a str, slice: BufferSlice<'a>) -> Self {
        self.named.retain(|(other, _)| *other != name);
        self.named.push((name, slice));
        self
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

    /// The slice given as `operand` of `plan`.
    pub(crate) fn get(&self, plan: &Plan, operand: Operand) -> Option<BufferSlice<'a>> {
        if let Operand::Buffer(index) = operand {
            let name = plan.buffer_name(index);
            return self.named.iter().find(|(other, _)| *other == name).map(|(_, slice)| *slice);
        }
        self.slices.iter().find(|(other, _)| *other == operand).map(|(_, slice)| *slice)
    }

    /// The scratch given.
    pub(crate) fn given_workspace(&self) -> Option<BufferSlice<'a>> {
        self.workspace
    }

    /// Checks everything that `plan` asks of the slices.
    pub(crate) fn check(&self, plan: &Plan, limits: &wgpu::Limits) -> Result<(), BindError> {
        let mut used = Vec::new();
        for need in plan.operands() {
            let tensor = match need.operand {
                Operand::Buffer(index) => Cow::Owned(plan.buffer_name(index).to_owned()),
                operand => Cow::Borrowed(operand.name()),
            };
            let Some(slice) = self.get(plan, need.operand) else {
                return Err(BindError::Missing { tensor });
            };
            let (required, written) = (need.bytes, need.written);
            let alignment = match need.operand {
                Operand::Buffer(_) => limits.min_storage_buffer_offset_alignment.into(),
                _ => need.alignment,
            };
            let operand = Used { tensor, slice, required, written };
            let mut operand = operand.checked(alignment)?;
            if matches!(need.operand, Operand::Buffer(_)) {
                operand.check_binding(limits)?;
                // All of it is bound.
                operand.required = operand.slice.size() / 4 * 4;
            }
            used.push(operand);
        }
        let workspace = plan.workspace_bytes();
        match self.workspace {
            Some(slice) if workspace > 0 => {
                let tensor = Cow::Borrowed("workspace");
                let all = Used { tensor, slice, required: workspace, written: true };
                used.push(all.checked(4)?);
            }
            _ => {}
        }
        for (i, output) in used.iter().enumerate().filter(|(_, operand)| operand.written) {
            let mut others = used.iter().enumerate().filter(|(j, _)| *j != i);
            if let Some((_, other)) = others.find(|(_, other)| output.overlaps(other)) {
                let (output, other) = (output.tensor.clone(), other.tensor.clone());
                return Err(BindError::Overlap { output, other });
            }
        }
        let unused = |tensor: &str| BindError::Unused { tensor: Cow::Owned(tensor.to_owned()) };
        if let Some((operand, _)) = self.slices.iter().find(|(operand, _)| !plan.knows(*operand)) {
            return Err(unused(operand.name()));
        }
        match self.named.iter().find(|(name, _)| !plan.knows_buffer(name)) {
            Some((name, _)) => Err(unused(name)),
            None => Ok(()),
        }
    }
}

/// What a plan needs of an operand.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Need {
    pub(crate) operand: Operand,
    /// Bytes of it.
    pub(crate) bytes: u64,
    pub(crate) written: bool,
    /// What a slice starts at a multiple of, in bytes.
    pub(crate) alignment: u64,
}

/// A slice and what a plan does with it.
struct Used<'a> {
    tensor: Cow<'static, str>,
    slice: BufferSlice<'a>,
    required: u64,
    written: bool,
}

impl Used<'_> {
    fn checked(self, alignment: u64) -> Result<Self, BindError> {
        let Self { tensor, slice, required, .. } = &self;
        let (tensor, required) = (tensor.clone(), *required);
        if slice.size() < required {
            return Err(BindError::TooSmall { tensor, required, actual: slice.size() });
        }
        // Bindings end at whole words.
        let end = slice.offset() + required;
        let (end, size) = (end.next_multiple_of(4), slice.buffer().size());
        if end > size {
            let required = end - slice.offset();
            return Err(BindError::TooSmall { tensor, required, actual: size - slice.offset() });
        }
        if !slice.buffer().usage().contains(BufferUsages::STORAGE) {
            return Err(BindError::MissingUsage { tensor, missing: BufferUsages::STORAGE });
        }
        if !slice.offset().is_multiple_of(alignment) {
            return Err(BindError::Misaligned { tensor, offset: slice.offset(), alignment });
        }
        Ok(self)
    }

    /// That the whole slice may be one binding.
    fn check_binding(&self, limits: &wgpu::Limits) -> Result<(), BindError> {
        let (required, available) = (self.slice.size(), limits.max_storage_buffer_binding_size);
        if required > available {
            let tensor = self.tensor.clone();
            return Err(BindError::BindingTooLarge { tensor, required, available });
        }
        Ok(())
    }

    fn overlaps(&self, other: &Self) -> bool {
        let (a, b) = (self.slice, other.slice);
        a.buffer() == b.buffer()
            && a.offset() < b.offset() + other.required
            && b.offset() < a.offset() + self.required
    }
}
