//! Uniform structs that mirror their WGSL originals; a test compares them.

/// Name, offset and size in bytes of one field of a params struct.
pub type Field = (&'static str, u32, u32);

/// A uniform struct of 4-byte scalars and the table of its fields.
macro_rules! params {
    ($(#[$meta:meta])* $name:ident { $($field:ident: $ty:ty),* $(,)? }) => {
        $(#[$meta])*
        #[repr(C)]
        #[derive(Clone, Copy, Debug, Default, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
        pub(crate) struct $name { $(pub(crate) $field: $ty),* }

        impl $name {
            #[allow(clippy::cast_possible_truncation, reason = "a struct of a few hundred bytes")]
            pub(crate) const FIELDS: &'static [$crate::kernels::Field] = &[
                $((stringify!($field), std::mem::offset_of!($name, $field) as u32, size_of::<$ty>() as u32)),*
            ];
        }
    };
}
pub(crate) use params;

params! {
    /// Uniforms of `common/attention.wgsl`. Bases are filled in when buffers are bound.
    AttentionParams {
        batch: u32, heads: u32, q_len: u32, kv_len: u32,
        batch_first: u32, head_first: u32, q_first: u32, kv_first: u32,
        group_size: u32, tiles: u32, grid_width: u32, workgroup_first: u32, workgroups: u32,
        q_base: u32, q_batch: u32, q_head: u32, q_row: u32,
        k_base: u32, k_words: u32, k_batch: u32, k_head: u32, k_row: u32,
        v_base: u32, v_words: u32, v_batch: u32, v_head: u32, v_row: u32,
        out_base: u32, out_batch: u32, out_head: u32, out_row: u32,
        scores_base: u32, scores_batch: u32, scores_head: u32, scores_row: u32,
        kept_base: u32, kept_batch: u32, kept_head: u32, kept_row: u32,
        lse_base: u32, lse_batch: u32, lse_head: u32,
        partial_out_base: u32, partial_out_part: u32, partial_out_batch: u32, partial_out_head: u32, partial_out_row: u32,
        partial_lse_base: u32, partial_lse_part: u32, partial_lse_batch: u32, partial_lse_head: u32, partial_lse_row: u32,
        parts: u32,
        kv_heads: u32, ranges: u32, range_keys: u32,
        mask_base: u32, mask_batch: u32, mask_head: u32, mask_row: u32, mask_key: u32,
        bias_base: u32, bias_batch: u32, bias_head: u32, bias_row: u32, bias_key: u32,
        tables_base: u32, sequences_at: u32, rows_at: u32, slopes_at: u32, slopes_batch: u32, sinks_at: u32,
        pages_at: u32, pages_row: u32,
        dropout_threshold: u32, keep_scale: f32, seed_at: u32,
        keep_base: u32, keep_batch: u32, keep_head: u32, keep_row: u32, keep_key: u32,
        classes_base: u32, classes_at: u32, classes_batch: u32, classes_head: u32, classes_row: u32,
        x_base: u32, x_batch: u32, x_head: u32, x_row: u32,
        d_out_base: u32, d_out_batch: u32, d_out_head: u32, d_out_row: u32, d_lse_base: u32, stats_base: u32,
        d_k_base: u32, d_k_batch: u32, d_k_head: u32, d_k_row: u32, d_v_base: u32, d_v_batch: u32, d_v_head: u32, d_v_row: u32,
        d_scores_base: u32, d_biased_base: u32,
        sums_base: u32, sums_batch: u32, sums_head: u32, sums_row: u32, sums_key: u32,
        sum_batch: u32, sum_heads: u32, sum_rows: u32, elements: u32,
        accumulate: u32, neg_infinity: u32, rows_each: u32,
        band_begin: i32, band_end: i32, diagonal: i32, scale: f32, softcap: f32,
    }
}
