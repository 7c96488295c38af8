// out = what was summed in f32, in its own type.
// One workgroup owns one row.
// Expects: THREADS, V_HEAD_DIM, partial_out, Params, row_at, out_at, store_out.
// Provides: convert_kernel.
@compute @workgroup_size(THREADS)
fn convert_kernel(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let id = flat_id(group);
    if id >= params.workgroups { return; }
    let at = row_at(id);
    let first = out_at(at);
    for (var d = lane; d < V_HEAD_DIM; d += THREADS) {
        store_out(first + d, partial_out[params.partial_out_base + id * V_HEAD_DIM + d]);
    }
}
