// delta_i = <out_i, d_out_i> (- d_lse_i), beside lse_i: what all gradients of a row's scores share.
// One workgroup owns one row.
// Expects: THREADS, V_HEAD_DIM, lse, stats, Params, row_at, out_at, load_out, load_d_out, d_lse_of.
// Provides: delta_kernel.
var<workgroup> sums: array<f32, THREADS>;

@compute @workgroup_size(THREADS)
fn delta_kernel(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let id = flat_id(group);
    if id >= params.workgroups { return; }
    let at = row_at(id);
    let out_first = out_at(at);
    let d_out_first = params.d_out_base + at.batch * params.d_out_batch + at.head * params.d_out_head
                    + at.row * params.d_out_row;
    var sum = 0.0;
    for (var d = lane; d < V_HEAD_DIM; d += THREADS) {
        sum = fma(load_out(out_first + d), load_d_out(d_out_first + d), sum);
    }
    sums[lane] = sum;
    workgroupBarrier();
    for (var half = THREADS / 2u; half > 0u; half /= 2u) {
        if lane < half { sums[lane] += sums[lane + half]; }
        workgroupBarrier();
    }
    if lane == 0u {
        let row = at.batch * params.lse_batch + at.head * params.lse_head + at.row;
        stats[params.stats_base + 2u * id] = lse[params.lse_base + row];
        stats[params.stats_base + 2u * id + 1u] = bitcast<u32>(sums[0] - d_lse_of(row));
    }
}
