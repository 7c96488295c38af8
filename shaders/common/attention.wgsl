// What every attention kernel is told, in elements: extents of the block that it works on, where the
// block starts in the problem, and where its tensors start and how they are strided in their bindings.
// Expects: `params` bound as a uniform; seen and place_of, of a row.
// Provides: Params, Place, RowAt, kv_head_of, block_begin, block_end, row_at, out_at, place_at, flat_id, LOWEST.
struct Params {
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
    parts: u32, kv_heads: u32, ranges: u32, range_keys: u32,
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

// A query row in its sequence: which one, where in it, and the row of k that its key 0 is.
struct Place { batch: u32, q_pos: u32, kv_start: u32, real: bool }

const LOWEST: f32 = -3.4028235e38;   // no finite score is below it: m needs no other sign that a key was seen

// The block's K/V head of its query head `head`.
fn kv_head_of(head: u32) -> u32 {
    return (params.head_first + head) / params.group_size - params.head_first / params.group_size;
}

// The keys of the block that its row `row` sees: from here ...
fn block_begin(batch: u32, row: u32) -> u32 {
    let begin = seen(params.batch_first + batch, params.q_first + row).x;
    return min(max(begin, params.kv_first) - params.kv_first, params.kv_len);
}

// ... to one before here.
fn block_end(batch: u32, row: u32) -> u32 {
    let end = seen(params.batch_first + batch, params.q_first + row).y;
    return min(max(end, params.kv_first) - params.kv_first, params.kv_len);
}

// A query row of the block, where a workgroup owns one.
struct RowAt { batch: u32, head: u32, row: u32 }

fn row_at(id: u32) -> RowAt {
    return RowAt(id / params.q_len / params.heads, id / params.q_len % params.heads, id % params.q_len);
}

// The first element of a row of out.
fn out_at(at: RowAt) -> u32 {
    return params.out_base + at.batch * params.out_batch + at.head * params.out_head + at.row * params.out_row;
}

// Where a row is in its sequence.
fn place_at(at: RowAt) -> Place { return place_of(params.batch_first + at.batch, params.q_first + at.row); }

// One number for a workgroup of a grid that is folded where an axis ends, and may be the rest of one cut in parts.
fn flat_id(group: vec3<u32>) -> u32 {
    return params.workgroup_first + group.y * params.grid_width + group.x;
}
