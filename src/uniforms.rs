//! What all attention kernels are told of a block: the contents of their uniforms.

use crate::blocks::{Block, PairView, View};
use crate::forward::{AttentionPlanner, Views};
use crate::kernels::{AttentionParams, FlashTile};
use crate::problem::Slopes;
use crate::shape::Shape;
use std::ops::Range;

impl AttentionPlanner<'_, '_> {
    /// What all kernels are told of a block and a range of keys.
    pub(crate) fn params(&self, block: &Block, keys: &Range<u32>, out: &View) -> AttentionParams {
        let Views { q, k, v, .. } = *self.views;
        let [batch, heads, q_len] = block.counts();
        let kv_len = keys.end - keys.start;
        let kv_heads = block.kv_heads().end - block.kv_heads().start;
        let outer = |view: &View, [batch, heads, rows]: [u32; 3]| {
            [
                stride(view.strides.batch, batch),
                stride(view.strides.head, heads),
                stride(view.strides.row, rows),
            ]
        };
        let [q_batch, q_head, q_row] = outer(&q, [batch, heads, q_len]);
        // Of pages, and of positions within one, where there are any.
        let (kv_batch, kv_rows) =
            self.problem.pages.map_or((batch, kv_len), |pages| (pages.pages, pages.page_len));
        let [k_batch, k_head, k_row] = outer(&k, [kv_batch, kv_heads, kv_rows]);
        let [v_batch, v_head, v_row] = outer(&v, [kv_batch, kv_heads, kv_rows]);
        let [out_batch, out_head, out_row] = outer(out, [batch, heads, q_len]);
        let lse = self.views.lse.strides;
        let Shape { q_len: all_q, kv_len: all_kv, .. } = self.problem.shape;
        let diagonal = self.problem.mask.diagonal(all_q, all_kv).unwrap_or(0);
        let (begin, end) = self.problem.mask.bounds(diagonal);
        let pairs = |view: Option<PairView>| {
            let Some(view) = view else { return [0; 5] };
            let counts = [batch, heads, q_len, kv_len];
            let strides: [u32; 4] =
                std::array::from_fn(|axis| stride(view.pairs.strides[axis], counts[axis]));
            let [a, b, c, d] = strides;
            [narrow(view.bytes(block, keys).1), a, b, c, d]
        };
        let [mask_base, mask_batch, mask_head, mask_row, mask_key] = pairs(self.mask_view());
        let [bias_base, bias_batch, bias_head, bias_row, bias_key] = pairs(self.bias_view());
        let [keep_base, keep_batch, keep_head, keep_row, keep_key] = pairs(self.keep_view());
        let dropout = self.problem.drops();
        let per_sequence = self.problem.alibi == Some(Slopes::PerSequence);
        AttentionParams {
            batch,
            heads,
            q_len,
            kv_len,
            batch_first: block.batch.start,
            head_first: block.heads.start,
            q_first: block.q.start,
            kv_first: keys.start,
            group_size: self.shape.group_size(),
            kv_heads,
            q_batch,
            q_head,
            q_row,
            k_batch,
            k_head,
            k_row,
            v_batch,
            v_head,
            v_row,
            out_batch,
            out_head,
            out_row,
            lse_batch: stride(lse.batch, batch),
            lse_head: stride(lse.head, heads),
            neg_infinity: f32::NEG_INFINITY.to_bits(),
            rows_each: FlashTile::TILE_M,
            band_begin: begin.map_or(-BAND_END, clamp_band),
            band_end: end.map_or(BAND_END, clamp_band),
            diagonal: clamp_diagonal(diagonal),
            scale: self.problem.effective_scale(),
            softcap: self.problem.softcap.unwrap_or_default(),
            mask_base,
            mask_batch,
            mask_head,
            mask_row,
            mask_key,
            bias_base,
            bias_batch,
            bias_head,
            bias_row,
            bias_key,
            sequences_at: self.tables.sequences_at,
            rows_at: self.tables.rows_at,
            slopes_at: self.tables.slopes_at,
            slopes_batch: if per_sequence { self.shape.heads } else { 0 },
            sinks_at: self.tables.sinks_at,
            pages_at: self.tables.pages_at,
            pages_row: self.problem.pages.map_or(0, |pages| pages.table_len(self.shape.kv_len)),
            dropout_threshold: dropout.map_or(0, |dropout| dropout.threshold()),
            keep_scale: dropout.map_or(1.0, |dropout| dropout.keep_scale()),
            seed_at: self.tables.seed_at,
            keep_base,
            keep_batch,
            keep_head,
            keep_row,
            keep_key,
            ..AttentionParams::default()
        }
    }
}

pub(crate) fn tiled(params: AttentionParams, rows: u32, block: u32) -> AttentionParams {
    AttentionParams { tiles: rows.div_ceil(block), ..params }
}

/// Beyond every position: 2^30 and a position below 2^29 add up without overflow.
const BAND_END: i32 = 1 << 30;

/// A diagonal beyond 32 bits is past every key.
fn clamp_diagonal(diagonal: i64) -> i32 {
    i32::try_from(diagonal.clamp(i32::MIN.into(), i32::MAX.into())).expect("clamped")
}

fn clamp_band(bound: i64) -> i32 {
    i32::try_from(bound.clamp((-BAND_END).into(), BAND_END.into())).expect("clamped")
}

/// A stride along an axis of `n`; of one element it is never used. What is bound fits 32 bits; what is not bound may
/// not, and is not read.
pub(crate) fn stride(elements: u64, n: u32) -> u32 {
    if n > 1 { u32::try_from(elements).unwrap_or(u32::MAX) } else { 0 }
}

/// A number of elements within one binding, which is below 2^31 bytes.
pub(crate) fn narrow(elements: u64) -> u32 {
    u32::try_from(elements).expect("within a binding")
}
