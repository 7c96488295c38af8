// o_i = sum over parts of exp(lse_p - lse) o_p, lse = ln of the sum of exp(lse_p): results over ranges of keys
// become the result over all of them, sinks last. A part of -inf, known by its bits, saw no key and adds nothing; what
// one part alone saw is as it was, to the bit.
// One workgroup owns one row; an invocation COLUMNS at a time, THREADS apart.
// SUMS: parts have their m and l apart, as two words, where others have a lse: m, of an l of 1.
// Expects: THREADS, COLUMNS, SUMS, V_HEAD_DIM, load_partial_out, partial_lse, Params, row_at, out_at, place_at, with_sink,
// store_out, store_lse.
// Provides: merge_kernel.
const NOTHING: f32 = -0.0;   // what any x is added to without a trace, x = -0 too

// Whether every invocation has all its columns every time.
const EVEN: bool = V_HEAD_DIM % (THREADS * COLUMNS) == 0u;

// A driver's exp(0) need not be 1.
fn weight(lse: f32, m: f32) -> f32 { return select(exp(lse - m), 1.0, lse == m); }

fn sum_of(i: u32) -> f32 {
    if !SUMS { return 1.0; }
    return bitcast<f32>(partial_lse[i + 1u]);
}

@compute @workgroup_size(THREADS)
fn merge_kernel(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let id = flat_id(group);
    if id >= params.workgroups { return; }
    let at = row_at(id);
    let first = out_at(at);
    let lse_first = params.partial_lse_base + at.batch * params.partial_lse_batch + at.head * params.partial_lse_head
        + at.row * params.partial_lse_row;
    let out_first = params.partial_out_base + at.batch * params.partial_out_batch + at.head * params.partial_out_head
        + at.row * params.partial_out_row;

    var m = LOWEST;
    for (var p = 0u; p < params.parts; p++) {
        let bits = partial_lse[lse_first + p * params.partial_lse_part];
        if bits != params.neg_infinity { m = max(m, bitcast<f32>(bits)); }
    }
    var l = 0.0;
    for (var p = 0u; p < params.parts; p++) {
        let bits = partial_lse[lse_first + p * params.partial_lse_part];
        if bits != params.neg_infinity {
            l += sum_of(lse_first + p * params.partial_lse_part) * weight(bitcast<f32>(bits), m);
        }
    }
    let seen = l > 0.0;
    let sum = with_sink(m, l, at.head, place_at(at).real);
    m = sum.x;
    l = sum.y;
    let norm = 1.0 / l;
    for (var d = lane; d < V_HEAD_DIM; d += THREADS * COLUMNS) {
        var o: array<f32, COLUMNS>;
        for (var c = 0u; c < COLUMNS; c++) { o[c] = NOTHING; }
        for (var p = 0u; p < params.parts; p++) {
            let bits = partial_lse[lse_first + p * params.partial_lse_part];
            if bits == params.neg_infinity { continue; }
            let share = sum_of(lse_first + p * params.partial_lse_part) * weight(bitcast<f32>(bits), m);
            let w = select(share * norm, 1.0, share == l);
            let i = out_first + p * params.partial_out_part + d;
            for (var c = 0u; c < COLUMNS; c++) {
                if EVEN || d + c * THREADS < V_HEAD_DIM { o[c] = fma(w, load_partial_out(i + c * THREADS), o[c]); }
            }
        }
        for (var c = 0u; c < COLUMNS; c++) {
            if EVEN || d + c * THREADS < V_HEAD_DIM { store_out(first + d + c * THREADS, select(0.0, o[c], seen)); }
        }
    }
    if lane == 0u { store_lse(at.batch, at.head, at.row, m, l); }
}
