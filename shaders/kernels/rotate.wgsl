// out_i = x_i turned by the angles of position offset + i, or offset - n + i where an offset counts the n rows.
// One workgroup owns a position of a sequence, its rows of all heads; an invocation turns four neighbouring elements at
// a time.
// Expects: THREADS, DIM, turned4, store_out4; pos_offsets_at, where row 0 of a sequence stands; NEW_LENS: whether
// sequences have as many rows as new_lens_at says, else as many as params.counted.
// Provides: Params, rotate_kernel.
struct Params {
    grid_width: u32, workgroup_first: u32, workgroups: u32,
    heads: u32, rows: u32, row_first: u32,
    x_base: u32, x_batch: u32, x_head: u32, x_row: u32,
    out_base: u32, out_batch: u32, out_head: u32, out_row: u32,
    pos_offsets_base: u32, new_lens_base: u32, counted: u32, cos_table_base: u32, sin_table_base: u32, last_pos: u32,
}

const PARTS: u32 = (DIM + 3u) / 4u;

@compute @workgroup_size(THREADS)
fn rotate_kernel(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let id = params.workgroup_first + group.y * params.grid_width + group.x;
    if id >= params.workgroups { return; }
    let row = id % params.rows;
    let batch = id / params.rows;
    let offset = pos_offsets_at(batch);
    var counted = params.counted;
    if NEW_LENS { counted = min(counted, new_lens_at(batch)); }
    // Rows that an offset cannot have counted stand at position 0.
    let before = counted - min(counted, offset);
    let after = params.row_first + row - min(params.row_first + row, before);
    // An offset may be anything: clamped before the row is added, the sum does not overflow.
    let pos = min(min(offset + before - counted, params.last_pos) + after, params.last_pos);
    let x_first = params.x_base + batch * params.x_batch + row * params.x_row;
    let out_first = params.out_base + batch * params.out_batch + row * params.out_row;
    for (var p = lane; p < params.heads * PARTS; p += THREADS) {
        let head = p / PARTS;
        let d = p % PARTS * 4u;
        store_out4(out_first + head * params.out_head + d, DIM - d, turned4(x_first + head * params.x_head, d, pos));
    }
}
