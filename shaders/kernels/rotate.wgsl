// out_i = x_i turned by the angles of position offset + i.
// One workgroup owns a position of a sequence, its rows of all heads; an invocation turns four neighbouring elements at
// a time.
// Expects: THREADS, DIM, turned4, store_out4; pos_offsets_at, where row 0 of a sequence stands.
// Provides: Params, rotate_kernel.
struct Params {
    grid_width: u32, workgroup_first: u32, workgroups: u32,
    heads: u32, rows: u32, row_first: u32,
    x_base: u32, x_batch: u32, x_head: u32, x_row: u32,
    out_base: u32, out_batch: u32, out_head: u32, out_row: u32,
    pos_offsets_base: u32, cos_table_base: u32, sin_table_base: u32, last_pos: u32,
}

const PARTS: u32 = (DIM + 3u) / 4u;

@compute @workgroup_size(THREADS)
fn rotate_kernel(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let id = params.workgroup_first + group.y * params.grid_width + group.x;
    if id >= params.workgroups { return; }
    let row = id % params.rows;
    let batch = id / params.rows;
    // An offset may be anything: clamped before the row is added, the sum does not overflow.
    let pos = min(min(pos_offsets_at(batch), params.last_pos) + params.row_first + row, params.last_pos);
    let x_first = params.x_base + batch * params.x_batch + row * params.x_row;
    let out_first = params.out_base + batch * params.out_batch + row * params.out_row;
    for (var p = lane; p < params.heads * PARTS; p += THREADS) {
        let head = p / PARTS;
        let d = p % PARTS * 4u;
        store_out4(out_first + head * params.out_head + d, DIM - d, turned4(x_first + head * params.x_head, d, pos));
    }
}
