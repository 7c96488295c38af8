// o = softmax(score(Q K^T)) V of few rows over many keys, as software GPUs like it: online softmax, whole rows.
// One workgroup owns THREADS rows that share a K/V head; an invocation owns one of them with all its columns. Keys and
// values come straight from storage, KEYS at a time: their address is the same for all invocations, so that each is
// loaded once. A range that no row sees is a lse of -inf alone.
// Expects: HEAD_DIM, V_HEAD_DIM, THREADS, KEYS, PAIRS, GUARD, RANGES, Params, few_rows, k_head_at, v_head_at, k_at, v_at,
// block_begin, block_end, place_of, pair_score, pair_visible, with_sink, read_seed, keeps, keep_scale, load_q4, load_k4, load_v4, store_out4, store_lse.
// Provides: decode_lane_kernel.
const D4: u32 = (HEAD_DIM + 3u) / 4u;
const V4: u32 = (V_HEAD_DIM + 3u) / 4u;

fn dot_onto(a: vec4<f32>, b: vec4<f32>, c: f32) -> f32 {
    return fma(a.w, b.w, fma(a.z, b.z, fma(a.y, b.y, fma(a.x, b.x, c))));
}

@compute @workgroup_size(THREADS)
fn decode_lane_kernel(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_id) local: vec3<u32>) {
    let flat = flat_id(group);
    if flat >= params.workgroups { return; }
    read_seed();
    let w = few_rows(flat);
    let batch = w.batch;
    let own = w.tile * THREADS + local.x;
    let head = w.kv_head * w.heads + min(own, w.last) / params.q_len;
    let row = min(own, w.last) % params.q_len;
    let k_first = k_head_at(batch, w.kv_head);
    let v_first = v_head_at(batch, w.kv_head);
    let lo = block_begin(batch, row);
    let hi = block_end(batch, row);
    let place = place_of(params.batch_first + batch, params.q_first + row);

    var q: array<vec4<f32>, D4>;
    var o: array<vec4<f32>, V4>;
    var m = LOWEST;
    var l = 0.0;
    let q_first = params.q_base + batch * params.q_batch + head * params.q_head + row * params.q_row;
    if w.begin < w.end {
        for (var d = 0u; d < D4; d++) { q[d] = load_q4(q_first + d * 4u, HEAD_DIM - d * 4u); }
    }
    for (var key = w.begin; key < w.end; key += KEYS) {
        var k_row: array<u32, KEYS>;
        var v_row: array<u32, KEYS>;
        for (var c = 0u; c < KEYS; c++) {
            k_row[c] = k_at(k_first, batch, key, c, true);
            v_row[c] = v_at(v_first, batch, key, c, true);
        }
        var s: array<f32, KEYS>;
        for (var d = 0u; d < D4; d++) {
            for (var c = 0u; c < KEYS; c++) {
                s[c] = dot_onto(q[d], load_k4(k_row[c] + d * 4u, HEAD_DIM - d * 4u), s[c]);
            }
        }
        for (var c = 0u; c < KEYS; c++) { s[c] = pair_score(s[c], place, batch, head, row, key + c); }
        var hidden = 0u;    // a bit a key
        if PAIRS || key < w.all_begin || key + KEYS > w.all_end {
            for (var c = 0u; c < KEYS; c++) {
                let in_band = key + c >= lo && key + c < min(hi, w.end);
                if !in_band || !pair_visible(place, batch, head, row, key + c) { hidden |= 1u << c; }
            }
        }
        var larger = m;
        for (var c = 0u; c < KEYS; c++) { larger = max(larger, select(s[c], LOWEST, (hidden & (1u << c)) != 0u)); }
        let keep = exp(m - larger);
        m = larger;
        l *= keep;
        for (var c = 0u; c < KEYS; c++) {
            s[c] = select(exp(s[c] - larger), 0.0, (hidden & (1u << c)) != 0u);
            l += s[c];
            s[c] = select(0.0, s[c], keeps(place, batch, head, row, key + c));
        }
        for (var d = 0u; d < V4; d++) {
            var sum = o[d] * keep;
            for (var c = 0u; c < KEYS; c++) {
                let more = fma(vec4<f32>(s[c]), load_v4(v_row[c] + d * 4u, V_HEAD_DIM - d * 4u), sum);
                // A pair that is excluded, or weighs nothing, adds nothing even if its value is NaN.
                sum = select(sum, more, !GUARD || s[c] != 0.0);
            }
            o[d] = sum;
        }
    }

    if own <= w.last {
        let sum = with_sink(m, l, head, place.real);
        let norm = select(0.0, exp(m - sum.x) / sum.y, sum.y > 0.0) * keep_scale();
        if !RANGES || l > 0.0 {
            let out_first = params.out_base + w.slot * params.out_batch + head * params.out_head + row * params.out_row;
            for (var d = 0u; d < V4; d++) { store_out4(out_first + d * 4u, V_HEAD_DIM - d * 4u, o[d] * norm); }
        }
        store_lse(w.slot, head, row, sum.x, sum.y);
    }
}
