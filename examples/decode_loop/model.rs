//! Sizes, and queries, keys and values without weights.

use crate::cache::PAGE_LEN;
use std::fmt;
use wgpu_attention::{DType, Rotary, RotaryPairs, wgpu};

pub(crate) const SEQUENCES: usize = 8;

/// One attention layer, and what is asked of it.
pub(crate) struct Model {
    pub(crate) heads: u32,
    pub(crate) kv_heads: u32,
    pub(crate) head_dim: u32,
    /// Tokens that sequences start with.
    pub(crate) prompts: [u32; SEQUENCES],
    /// Tokens that each goes on by.
    pub(crate) tokens: u32,
    /// Of the prompts, tokens of a sequence in one step.
    pub(crate) prefill_rows: u32,
    pub(crate) kv_dtype: DType,
}

impl Model {
    /// As large as this kind of device has done in a few seconds.
    pub(crate) fn for_device(
        device_type: wgpu::DeviceType,
        kv_dtype: DType,
        tokens: Option<u32>,
    ) -> Self {
        let software = Self {
            heads: 8,
            kv_heads: 2,
            head_dim: 64,
            prompts: [100, 600, 250, 333, 128, 517, 411, 191],
            tokens: tokens.unwrap_or(64),
            prefill_rows: 128,
            kv_dtype,
        };
        if device_type == wgpu::DeviceType::Cpu {
            return software;
        }
        Self {
            heads: 32,
            kv_heads: 8,
            head_dim: 128,
            prompts: software.prompts.map(|len| 5 * len),
            tokens: tokens.unwrap_or(256),
            prefill_rows: 256,
            kv_dtype,
        }
    }

    /// Positions that the longest sequence comes to.
    pub(crate) fn capacity(&self) -> u32 {
        self.prompts.iter().max().unwrap_or(&0) + self.tokens
    }

    pub(crate) fn prefill_steps(&self) -> u32 {
        (self.capacity() - self.tokens).div_ceil(self.prefill_rows)
    }

    /// Elements of a row of q, k and v side by side, as a model's projection leaves them.
    pub(crate) fn columns(&self) -> u32 {
        (self.heads + 2 * self.kv_heads) * self.head_dim
    }

    /// Llama's: half-split pairs, all of a head.
    pub(crate) fn rotary(&self) -> Rotary {
        Rotary::new(RotaryPairs::HalfSplit, self.head_dim, self.capacity())
    }

    /// `[positions, head_dim / 2]`: cosines and sines.
    pub(crate) fn rotary_tables(&self) -> (Vec<f32>, Vec<f32>) {
        self.rotary().tables(10_000.0)
    }

    /// Bytes of the keys and values of `len` positions.
    pub(crate) fn cache_bytes(&self, len: u32) -> u64 {
        let elements = 2 * u64::from(len) * u64::from(self.kv_heads) * u64::from(self.head_dim);
        elements * self.kv_dtype.bits() / 8
    }

    /// Heads `first..` of a row as [`WGSL`] makes it, `[heads, head_dim]`.
    pub(crate) fn part(&self, sequence: u32, position: u32, [first, heads]: [u32; 2]) -> Vec<f32> {
        let columns = first * self.head_dim..(first + heads) * self.head_dim;
        columns.map(|column| self.element(sequence, position, column)).collect()
    }

    /// `element` of [`WGSL`]: the same bits, as every operation is exact.
    fn element(&self, sequence: u32, position: u32, column: u32) -> f32 {
        let random = hash(hash(hash(sequence) ^ position) ^ column);
        let unit = (random >> 8) as f32 / 8_388_608.0 - 1.0;
        if column < self.heads * self.head_dim { 2.0 * unit } else { unit }
    }

    /// Takes the place of embedding, norm and projection: row `i` of a sequence is that of position `kv_lens + i`.
    /// A workgroup makes a row.
    pub(crate) fn wgsl(&self) -> String {
        let (columns, q_columns) = (self.columns(), self.heads * self.head_dim);
        format!("const COLUMNS = {columns}u;\nconst Q_COLUMNS = {q_columns}u;\n{WGSL}")
    }
}

const WGSL: &str = "
@group(0) @binding(0) var<storage, read> kv_lens: array<u32>;
@group(0) @binding(1) var<storage, read_write> qkv: array<f32>;

// PCG, by Jarzynski and Olano.
fn hash(x: u32) -> u32 {
    let state = x * 747796405u + 2891336453u;
    let word = ((state >> ((state >> 28u) + 4u)) ^ state) * 277803737u;
    return (word >> 22u) ^ word;
}

// Between -2 and 2 of queries, between -1 and 1 of keys and values.
fn element(sequence: u32, position: u32, column: u32) -> f32 {
    let random = hash(hash(hash(sequence) ^ position) ^ column);
    let unit = f32(random >> 8u) * 0x1p-23f - 1.0;
    return select(unit, 2.0 * unit, column < Q_COLUMNS);
}

@compute @workgroup_size(64)
fn make_qkv(
    @builtin(workgroup_id) row: vec3<u32>,
    @builtin(num_workgroups) rows: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let position = kv_lens[row.y] + row.x;
    let first = (row.y * rows.x + row.x) * COLUMNS;
    for (var column = lane; column < COLUMNS; column += 64u) {
        qkv[first + column] = element(row.y, position, column);
    }
}
";

/// `hash` of [`WGSL`].
fn hash(x: u32) -> u32 {
    let state = x.wrapping_mul(747_796_405).wrapping_add(2_891_336_453);
    let word = ((state >> ((state >> 28) + 4)) ^ state).wrapping_mul(277_803_737);
    (word >> 22) ^ word
}

impl fmt::Display for Model {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { heads, kv_heads, head_dim, prompts, tokens, kv_dtype, .. } = self;
        let prompts = prompts.map(|len| len.to_string()).join(", ");
        writeln!(
            f,
            "One attention layer: {heads} query heads on {kv_heads} key/value heads, {head_dim} wide, rotary;"
        )?;
        writeln!(f, "keys and values cached in {kv_dtype:?}, in pages of {PAGE_LEN} positions")?;
        write!(f, "{SEQUENCES} sequences with prompts of {prompts} tokens, {tokens} more of each")
    }
}
