// cache[kv_len + i] = x_i: new rows of keys or of values into the cache, in its type, keys turned if they are to be.
// One workgroup owns a position of a sequence, its rows of all heads; an invocation writes EACH neighbouring elements at
// a time.
// Expects: THREADS, DIM, EACH, admitted, write_part, cache_at.
// Provides: Params, append_kernel.
struct Params {
    grid_width: u32, workgroup_first: u32, workgroups: u32,
    heads: u32, rows: u32, row_first: u32, pos_first: u32, pos_end: u32,
    x_base: u32, x_batch: u32, x_head: u32, x_row: u32,
    out_base: u32, out_words: u32, out_batch: u32, out_head: u32, out_row: u32,
    admitted_base: u32, block_table_base: u32, table_row: u32, page_len: u32, last_page: u32,
    cos_table_base: u32, sin_table_base: u32, last_pos: u32,
}

const PARTS: u32 = (DIM + EACH - 1u) / EACH;

@compute @workgroup_size(THREADS)
fn append_kernel(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let id = params.workgroup_first + group.y * params.grid_width + group.x;
    if id >= params.workgroups { return; }
    let row = id % params.rows;
    let batch = id / params.rows;
    let taken = admitted[params.admitted_base + 2u * batch + 1u];
    let pos = admitted[params.admitted_base + 2u * batch] + params.row_first + row;
    // Only positions of this part of the cache; the others are another dispatch's.
    if params.row_first + row >= taken || pos < params.pos_first || pos >= params.pos_end { return; }
    let x_first = params.x_base + batch * params.x_batch + row * params.x_row;
    let out_first = cache_at(batch, pos);
    for (var p = lane; p < params.heads * PARTS; p += THREADS) {
        let head = p / PARTS;
        write_part(out_first + head * params.out_head, p % PARTS * EACH, x_first + head * params.x_head,
                   min(pos, params.last_pos));
    }
}
