// o = softmax(score(Q K^T)) V of few rows over many keys, as hardware likes it: every byte of K and V is read once for all
// the rows, by neighbours at once.
// One workgroup owns ROWS rows that share a K/V head. Teams of LANES invocations take KEYS keys each at a time: an
// invocation owns every LANESth four columns of the keys, and of the values and their sum. A team has a softmax of its
// own, without a barrier; teams join once at the end.
// A range that no row sees is a lse of -inf alone.
// Expects: HEAD_DIM, V_HEAD_DIM, THREADS, LANES, ROWS, KEYS, PAIRS, RANGES, Params, few_rows, k_head_at, v_head_at, k_at, v_at,
// block_begin, block_end, place_of, pair_score, pair_visible, with_sink, read_seed, keeps, keep_scale, load_q4, load_k4, load_v4, store_out4, store_lse,
// Lane, lane_of, join.
// Provides: PAIRS_EACH, decode_team_kernel.
const TEAMS: u32 = THREADS / LANES;
const PAIRS_EACH: u32 = ROWS * KEYS;
const D4: u32 = (HEAD_DIM + 3u) / 4u;
const V4: u32 = (V_HEAD_DIM + 3u) / 4u;
const D_STEPS: u32 = (D4 + LANES - 1u) / LANES;
const V_STEPS: u32 = (V4 + LANES - 1u) / LANES;
const D_PITCH: u32 = D_STEPS * LANES;
const V_PITCH: u32 = V_STEPS * LANES;
const_assert THREADS % LANES == 0u && PAIRS_EACH <= 32u;

// Queries while there are keys, then one row's sums of every team.
var<workgroup> tile: array<vec4<f32>, max(ROWS * D_PITCH, TEAMS * V_PITCH)>;
var<workgroup> team_m: array<f32, TEAMS * ROWS>;
var<workgroup> team_l: array<f32, TEAMS * ROWS>;

fn dot_onto(a: vec4<f32>, b: vec4<f32>, c: f32) -> f32 {
    return fma(a.w, b.w, fma(a.z, b.z, fma(a.y, b.y, fma(a.x, b.x, c))));
}

@compute @workgroup_size(THREADS)
fn decode_team_kernel(@builtin(workgroup_id) group: vec3<u32>, place_in_group: Lane) {
    let flat = flat_id(group);
    if flat >= params.workgroups { return; }
    read_seed();
    let w = few_rows(flat);
    let batch = w.batch;
    let first = w.tile * ROWS;
    let k_first = k_head_at(batch, w.kv_head);
    let v_first = v_head_at(batch, w.kv_head);
    let lane = lane_of(place_in_group);
    let team = lane / LANES;
    let x = lane % LANES;

    for (var i = lane; i < ROWS * D_PITCH; i += THREADS) {
        let own = min(first + i / D_PITCH, w.last);
        let head = w.kv_head * w.heads + own / params.q_len;
        let d = i % D_PITCH * 4u;
        var q4 = vec4<f32>();
        if d < HEAD_DIM {
            let at = params.q_base + batch * params.q_batch + head * params.q_head + own % params.q_len * params.q_row;
            q4 = load_q4(at + d, HEAD_DIM - d);
        }
        tile[i] = q4;
    }
    workgroupBarrier();

    var o: array<vec4<f32>, ROWS * V_STEPS>;
    var m: array<f32, ROWS>;
    var l: array<f32, ROWS>;
    for (var r = 0u; r < ROWS; r++) { m[r] = LOWEST; }
    for (var key_first = w.begin; key_first < w.end; key_first += TEAMS * KEYS) {
        let key = key_first + team * KEYS;
        var s: array<f32, PAIRS_EACH>;
        for (var n = 0u; n < D_STEPS; n++) {
            let d = (n * LANES + x) * 4u;
            for (var c = 0u; c < KEYS; c++) {
                var k4 = vec4<f32>();
                if HEAD_DIM % (4u * LANES) == 0u || d < HEAD_DIM {
                    k4 = load_k4(k_at(k_first, batch, key, c, true) + d, HEAD_DIM - d);
                }
                for (var r = 0u; r < ROWS; r++) {
                    s[c * ROWS + r] = dot_onto(tile[r * D_PITCH + n * LANES + x], k4, s[c * ROWS + r]);
                }
            }
        }
        join(lane, &s);
        let edge = PAIRS || key < w.all_begin || key + KEYS > w.all_end;
        var hidden = 0u;    // a bit a pair
        var dropped = 0u;
        for (var r = 0u; r < ROWS; r++) {
            let own = min(first + r, w.last);
            let head = w.kv_head * w.heads + own / params.q_len;
            let row = own % params.q_len;
            let place = place_of(params.batch_first + batch, params.q_first + row);
            let lo = block_begin(batch, row);
            let hi = min(block_end(batch, row), w.end);
            for (var c = 0u; c < KEYS; c++) {
                s[c * ROWS + r] = pair_score(s[c * ROWS + r], place, batch, head, row, key + c);
                if !keeps(place, batch, head, row, key + c) { dropped |= 1u << (c * ROWS + r); }
                if edge {
                    let in_band = key + c >= lo && key + c < hi;
                    if !in_band || !pair_visible(place, batch, head, row, key + c) { hidden |= 1u << (c * ROWS + r); }
                }
            }
        }
        for (var r = 0u; r < ROWS; r++) {
            var larger = m[r];
            for (var c = 0u; c < KEYS; c++) {
                larger = max(larger, select(s[c * ROWS + r], LOWEST, (hidden & (1u << (c * ROWS + r))) != 0u));
            }
            let keep = exp(m[r] - larger);
            m[r] = larger;
            l[r] *= keep;
            for (var c = 0u; c < KEYS; c++) {
                let p = select(exp(s[c * ROWS + r] - larger), 0.0, (hidden & (1u << (c * ROWS + r))) != 0u);
                s[c * ROWS + r] = select(p, 0.0, (dropped & (1u << (c * ROWS + r))) != 0u);
                l[r] += p;
            }
            for (var n = 0u; n < V_STEPS; n++) { o[r * V_STEPS + n] *= keep; }
        }
        for (var n = 0u; n < V_STEPS; n++) {
            let d = (n * LANES + x) * 4u;
            for (var c = 0u; c < KEYS; c++) {
                var v4 = vec4<f32>();
                if V_HEAD_DIM % (4u * LANES) == 0u || d < V_HEAD_DIM {
                    v4 = load_v4(v_at(v_first, batch, key, c, true) + d, V_HEAD_DIM - d);
                }
                for (var r = 0u; r < ROWS; r++) {
                    let p = s[c * ROWS + r];
                    let sum = fma(vec4<f32>(p), v4, o[r * V_STEPS + n]);
                    // A pair that is excluded, or weighs nothing, adds nothing even if its value is NaN.
                    o[r * V_STEPS + n] = select(o[r * V_STEPS + n], sum, !edge || p != 0.0);
                }
            }
        }
    }

    if x == 0u {
        for (var r = 0u; r < ROWS; r++) {
            team_m[team * ROWS + r] = m[r];
            team_l[team * ROWS + r] = l[r];
        }
    }
    // A loop that no compiler unrolls, where there are several: code for each row would be most of the kernel.
    let rows = select(w.last + 1u - first, ROWS, ROWS == 1u || first + ROWS <= w.last);
    for (var r = 0u; r < rows; r++) {
        workgroupBarrier();
        var greatest = LOWEST;
        for (var t = 0u; t < TEAMS; t++) {
            if team_l[t * ROWS + r] > 0.0 { greatest = max(greatest, team_m[t * ROWS + r]); }
        }
        var total = 0.0;
        for (var t = 0u; t < TEAMS; t++) {
            let l_t = team_l[t * ROWS + r];
            if l_t > 0.0 { total += l_t * exp(team_m[t * ROWS + r] - greatest); }
        }
        var factor = 0.0;
        if team_l[team * ROWS + r] > 0.0 { factor = exp(team_m[team * ROWS + r] - greatest); }
        for (var i = 0u; i < ROWS; i++) {    // registers have no index
            if i == r {
                for (var n = 0u; n < V_STEPS; n++) { tile[team * V_PITCH + n * LANES + x] = o[i * V_STEPS + n] * factor; }
            }
        }
        workgroupBarrier();
        let own = first + r;
        let head = w.kv_head * w.heads + own / params.q_len;
        let row = own % params.q_len;
        let place = place_of(params.batch_first + batch, params.q_first + row);
        let sum = with_sink(greatest, total, head, place.real);
        let norm = select(0.0, exp(greatest - sum.x) / sum.y, sum.y > 0.0) * keep_scale();
        let out_first = params.out_base + w.slot * params.out_batch + head * params.out_head + row * params.out_row;
        for (var i = lane; i < V4 && (!RANGES || total > 0.0); i += THREADS) {
            var o4 = vec4<f32>();
            for (var t = 0u; t < TEAMS; t++) { o4 += tile[t * V_PITCH + i]; }
            store_out4(out_first + i * 4u, V_HEAD_DIM - i * 4u, o4 * norm);
        }
        if lane == 0u { store_lse(w.slot, head, row, sum.x, sum.y); }
    }
}
