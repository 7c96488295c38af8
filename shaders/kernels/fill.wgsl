// o_i = 0, lse_i = -inf, or the sink: attention over no key at all.
// One workgroup owns one row.
// Expects: THREADS, V_HEAD_DIM, Params, place_of, with_sink, store_out, store_lse.
// Provides: fill_kernel.
@compute @workgroup_size(THREADS)
fn fill_kernel(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let id = flat_id(group);
    if id >= params.workgroups { return; }
    let row = id % params.q_len;
    let head = id / params.q_len % params.heads;
    let batch = id / params.q_len / params.heads;
    let first = params.out_base + batch * params.out_batch + head * params.out_head + row * params.out_row;
    for (var d = lane; d < V_HEAD_DIM; d += THREADS) { store_out(first + d, 0.0); }
    if lane == 0u {
        let place = place_of(params.batch_first + batch, params.q_first + row);
        let sum = with_sink(LOWEST, 0.0, head, place.real);
        store_lse(batch, head, row, sum.x, sum.y);
    }
}
