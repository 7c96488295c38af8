// out = what was summed in f32, in its own type.
// One workgroup owns one row.
// Expects: THREADS, V_HEAD_DIM, partial_out, out, Params, store_out.
// Provides: convert_kernel.
@compute @workgroup_size(THREADS)
fn convert_kernel(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let id = flat_id(group);
    if id >= params.workgroups { return; }
    let row = id % params.q_len;
    let head = id / params.q_len % params.heads;
    let batch = id / params.q_len / params.heads;
    let first = params.out_base + batch * params.out_batch + head * params.out_head + row * params.out_row;
    for (var d = lane; d < V_HEAD_DIM; d += THREADS) {
        store_out(first + d, partial_out[params.partial_out_base + id * V_HEAD_DIM + d]);
    }
}
