// Of every tile of BLOCK_Q x BLOCK_KV pairs: 0 where none in the band is visible, 1 where all are, 2 where some.
// One workgroup owns one tile; an invocation looks at EACH neighbouring keys of a row at a time.
// Expects: THREADS, EACH, BLOCK_Q, BLOCK_KV, classes, Params, block_begin, block_end, place_of, pair_visible.
// Provides: classify_kernel.
var<workgroup> found: atomic<u32>;   // bit 0: a visible pair, bit 1: a hidden one

@compute @workgroup_size(THREADS)
fn classify_kernel(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let id = flat_id(group);
    if id >= params.workgroups { return; }
    let kv_tiles = params.classes_row;
    let kv_tile = id % kv_tiles;
    let q_tile = id / kv_tiles % params.tiles;
    let head = id / kv_tiles / params.tiles % params.heads;
    let batch = id / kv_tiles / params.tiles / params.heads;
    if lane == 0u { atomicStore(&found, 0u); }
    workgroupBarrier();
    var mine = 0u;
    for (var p = lane * EACH; p < BLOCK_Q * BLOCK_KV; p += THREADS * EACH) {
        let row = q_tile * BLOCK_Q + p / BLOCK_KV;
        if row < params.q_len {
            let begin = block_begin(batch, row);
            let end = block_end(batch, row);
            let place = place_of(params.batch_first + batch, params.q_first + row);
            for (var i = 0u; i < EACH; i++) {
                let key = kv_tile * BLOCK_KV + p % BLOCK_KV + i;
                if key >= begin && key < end {
                    mine |= select(2u, 1u, pair_visible(place, batch, head, row, key));
                }
            }
        }
    }
    // Most find nothing new.
    if (mine & ~atomicLoad(&found)) != 0u { atomicOr(&found, mine); }
    workgroupBarrier();
    if lane == 0u {
        let all = atomicLoad(&found);
        let at = params.classes_base + params.classes_at + batch * params.classes_batch
               + head * params.classes_head + q_tile * params.classes_row + kv_tile;
        classes[at] = select(select(2u, 1u, all == 1u), 0u, (all & 1u) == 0u);
    }
}
