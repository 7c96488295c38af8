// d_sink_h = sum over sequences and rows of exp(sink_h - lse_i) (d_lse_i - delta_i) (+ d_sink_h, where rows come in parts).
// One workgroup owns one head.
// Expects: THREADS, stats, sums, tables, Params.
// Provides: sink_gradients_kernel.
var<workgroup> lane_sums: array<f32, THREADS>;

@compute @workgroup_size(THREADS)
fn sink_gradients_kernel(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let head = flat_id(group);
    if head >= params.workgroups { return; }
    let bits = tables[params.tables_base + params.sinks_at + params.head_first + head];
    var sum = 0.0;
    for (var batch = 0u; batch < params.batch; batch++) {
        var of_sequence = 0.0;
        for (var row = lane; row < params.q_len; row += THREADS) {
            let at = params.stats_base + 2u * ((batch * params.heads + head) * params.q_len + row);
            // Rows past the end of their sequence have none.
            if stats[at] != params.neg_infinity && bits != params.neg_infinity {
                let weight = exp(bitcast<f32>(bits) - bitcast<f32>(stats[at]));
                of_sequence -= weight * bitcast<f32>(stats[at + 1u]);
            }
        }
        sum += of_sequence;
    }
    lane_sums[lane] = sum;
    workgroupBarrier();
    for (var half = THREADS / 2u; half > 0u; half /= 2u) {
        if lane < half { lane_sums[lane] += lane_sums[lane + half]; }
        workgroupBarrier();
    }
    if lane == 0u {
        var total = lane_sums[0];
        let i = params.sums_base + head;
        if params.accumulate != 0u { total += sums[i]; }
        sums[i] = total;
    }
}
