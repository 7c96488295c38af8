// o_i = 0, lse_i = -inf, or the sink: attention over no key at all.
// One workgroup owns one row.
// Expects: THREADS, V_HEAD_DIM, Params, row_at, out_at, place_at, with_sink, store_out, store_lse.
// Provides: fill_kernel.
@compute @workgroup_size(THREADS)
fn fill_kernel(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let id = flat_id(group);
    if id >= params.workgroups { return; }
    let at = row_at(id);
    let first = out_at(at);
    for (var d = lane; d < V_HEAD_DIM; d += THREADS) { store_out(first + d, 0.0); }
    if lane == 0u {
        let sum = with_sink(LOWEST, 0.0, at.head, place_at(at).real);
        store_lse(at.batch, at.head, at.row, sum.x, sum.y);
    }
}
