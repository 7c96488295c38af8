// What every attention kernel is told, in elements: extents of the block that it works on, where the
// block starts in the problem, and where its tensors start and how they are strided in their bindings.
// Expects: `params` bound as a uniform.
// Provides: Params, kv_head_of, block_begin, block_end, flat_id.
struct Params {
    batch: u32, heads: u32, q_len: u32, kv_len: u32,
    batch_first: u32, head_first: u32, q_first: u32, kv_first: u32,
    group_size: u32, grid_width: u32, workgroups: u32, tiles: u32,
    q_base: u32, q_batch: u32, q_head: u32, q_row: u32,
    k_base: u32, k_batch: u32, k_head: u32, k_row: u32,
    v_base: u32, v_batch: u32, v_head: u32, v_row: u32,
    out_base: u32, out_batch: u32, out_head: u32, out_row: u32,
    scores_base: u32, scores_batch: u32, scores_head: u32, scores_row: u32,
    lse_base: u32, lse_batch: u32, lse_head: u32,
    partial_out_base: u32, partial_out_part: u32, partial_lse_base: u32, partial_lse_part: u32, parts: u32,
    accumulate: u32, neg_infinity: u32,
    band_begin: i32, band_end: i32, scale: f32,
}

// The block's K/V head of its query head `head`.
fn kv_head_of(head: u32) -> u32 {
    return (params.head_first + head) / params.group_size - params.head_first / params.group_size;
}

// The keys of the block that its row `row` sees: from here ...
fn block_begin(batch: u32, row: u32) -> u32 {
    let begin = kv_begin(params.batch_first + batch, params.q_first + row);
    return min(max(begin, params.kv_first) - params.kv_first, params.kv_len);
}

// ... to one before here.
fn block_end(batch: u32, row: u32) -> u32 {
    let end = kv_end(params.batch_first + batch, params.q_first + row);
    return min(max(end, params.kv_first) - params.kv_first, params.kv_len);
}

// One number for a workgroup of a grid that is folded where an axis ends.
fn flat_id(group: vec3<u32>) -> u32 {
    return group.y * params.grid_width + group.x;
}
