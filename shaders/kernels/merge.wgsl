// o_i = sum over parts of exp(lse_p - lse) o_p, lse = ln of the sum of exp(lse_p): results over ranges of keys
// become the result over all of them, sinks last. A part of -inf, known by its bits, saw no key and adds nothing.
// One workgroup owns one row.
// Expects: THREADS, V_HEAD_DIM, partial_out, partial_lse, Params, row_at, out_at, place_at, with_sink, store_out, store_lse.
// Provides: merge_kernel.
@compute @workgroup_size(THREADS)
fn merge_kernel(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let id = flat_id(group);
    if id >= params.workgroups { return; }
    let at = row_at(id);
    let first = out_at(at);

    var m = LOWEST;
    for (var p = 0u; p < params.parts; p++) {
        let bits = partial_lse[params.partial_lse_base + p * params.partial_lse_part + id];
        if bits != params.neg_infinity { m = max(m, bitcast<f32>(bits)); }
    }
    var l = 0.0;
    for (var p = 0u; p < params.parts; p++) {
        let bits = partial_lse[params.partial_lse_base + p * params.partial_lse_part + id];
        if bits != params.neg_infinity { l += exp(bitcast<f32>(bits) - m); }
    }
    let sum = with_sink(m, l, at.head, place_at(at).real);
    m = sum.x;
    l = sum.y;
    let norm = select(0.0, 1.0 / l, l > 0.0);
    for (var d = lane; d < V_HEAD_DIM; d += THREADS) {
        var o = 0.0;
        for (var p = 0u; p < params.parts; p++) {
            let bits = partial_lse[params.partial_lse_base + p * params.partial_lse_part + id];
            if bits != params.neg_infinity {
                let i = params.partial_out_base + p * params.partial_out_part + id * V_HEAD_DIM + d;
                o = fma(exp(bitcast<f32>(bits) - m) * norm, partial_out[i], o);
            }
        }
        store_out(first + d, o);
    }
    if lane == 0u { store_lse(at.batch, at.head, at.row, m, l); }
}
