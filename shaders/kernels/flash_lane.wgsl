// o = softmax(score(Q K^T)) V in one pass over the keys, as software GPUs like it: online softmax, whole rows.
// One workgroup owns BLOCK_Q rows of one head; an invocation owns rows lane and lane + THREADS with all their
// columns. Keys and values pass through workgroup memory, 16 at a time, and are read from there at an address that
// all invocations share: loaded once for all.
// Keys that no row of the workgroup sees are skipped; only keys that some row does not see are masked ("edge").
// Expects: HEAD_DIM, V_HEAD_DIM, BLOCK_Q, Params, block_begin, block_end, place_of, pair_score, pair_visible,
// tile_class, with_sink, load_q4, load_k4, load_v4, store_out4, store_lse.
// Provides: flash_lane_kernel.
const THREADS: u32 = BLOCK_Q / 2u;
const KEYS: u32 = 4u;
const BLOCK_KV: u32 = 16u;
const D4: u32 = (HEAD_DIM + 3u) / 4u;
const V4: u32 = (V_HEAD_DIM + 3u) / 4u;

var<workgroup> k_tile: array<vec4<f32>, BLOCK_KV * D4>;
var<workgroup> v_tile: array<vec4<f32>, BLOCK_KV * V4>;

fn dot_onto(a: vec4<f32>, b: vec4<f32>, c: f32) -> f32 {
    return fma(a.w, b.w, fma(a.z, b.z, fma(a.y, b.y, fma(a.x, b.x, c))));
}

@compute @workgroup_size(THREADS)
fn flash_lane_kernel(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let id = flat_id(group);
    if id >= params.workgroups { return; }
    let tile = id % params.tiles;
    let head = id / params.tiles % params.heads;
    let batch = id / params.tiles / params.heads;
    let kv_head = kv_head_of(head);
    let q_first = params.q_base + batch * params.q_batch + head * params.q_head;
    let k_first = params.k_base + batch * params.k_batch + kv_head * params.k_head;
    let v_first = params.v_base + batch * params.v_batch + kv_head * params.v_head;

    let row_first = tile * BLOCK_Q;
    let row_last = min(row_first + BLOCK_Q, params.q_len) - 1u;
    let begin = block_begin(batch, row_first) / BLOCK_KV * BLOCK_KV;
    let end = block_end(batch, row_last);
    let all_begin = block_begin(batch, row_last);   // every row sees the keys from here ...
    let all_end = block_end(batch, row_first);      // ... to here
    let row0 = min(row_first + lane, row_last);
    let row1 = min(row_first + lane + THREADS, row_last);
    let place0 = place_of(params.batch_first + batch, params.q_first + row0);
    let place1 = place_of(params.batch_first + batch, params.q_first + row1);
    let lo0 = block_begin(batch, row0);
    let hi0 = block_end(batch, row0);
    let lo1 = block_begin(batch, row1);
    let hi1 = block_end(batch, row1);

    var q0: array<vec4<f32>, D4>;
    var q1: array<vec4<f32>, D4>;
    var o0: array<vec4<f32>, V4>;
    var o1: array<vec4<f32>, V4>;
    for (var d = 0u; d < D4; d++) {
        q0[d] = load_q4(q_first + row0 * params.q_row + d * 4u, HEAD_DIM - d * 4u);
        q1[d] = load_q4(q_first + row1 * params.q_row + d * 4u, HEAD_DIM - d * 4u);
    }
    var m0 = LOWEST;
    var m1 = LOWEST;
    var l0 = 0.0;
    var l1 = 0.0;
    for (var tile_first = begin; tile_first < end; tile_first += BLOCK_KV) {
        let kind = tile_class(batch, head, tile, tile_first / BLOCK_KV);
        if kind == 0u { continue; }
        workgroupBarrier();
        for (var i = lane; i < BLOCK_KV * D4; i += THREADS) {
            let at = k_first + min(tile_first + i / D4, params.kv_len - 1u) * params.k_row;
            k_tile[i] = load_k4(at + i % D4 * 4u, HEAD_DIM - i % D4 * 4u);
        }
        for (var i = lane; i < BLOCK_KV * V4; i += THREADS) {
            let at = v_first + min(tile_first + i / V4, params.kv_len - 1u) * params.v_row;
            v_tile[i] = load_v4(at + i % V4 * 4u, V_HEAD_DIM - i % V4 * 4u);
        }
        workgroupBarrier();
        for (var t = 0u; t < BLOCK_KV; t += KEYS) {
            let key = tile_first + t;
            if key >= end { break; }
            var s0: array<f32, KEYS>;
            var s1: array<f32, KEYS>;
            for (var d = 0u; d < D4; d++) {
                for (var c = 0u; c < KEYS; c++) {
                    let k4 = k_tile[(t + c) * D4 + d];
                    s0[c] = dot_onto(q0[d], k4, s0[c]);
                    s1[c] = dot_onto(q1[d], k4, s1[c]);
                }
            }
            for (var c = 0u; c < KEYS; c++) {
                s0[c] = pair_score(s0[c], place0, batch, head, row0, key + c);
                s1[c] = pair_score(s1[c], place1, batch, head, row1, key + c);
            }
            let edge = kind == 2u || key < all_begin || key + KEYS > all_end;
            var larger0 = m0;
            var larger1 = m1;
            var shown0 = 0u;
            var shown1 = 0u;
            if edge {
                for (var c = 0u; c < KEYS; c++) {
                    if key + c >= lo0 && key + c < hi0 && pair_visible(place0, batch, head, row0, key + c) {
                        shown0 |= 1u << c;
                        larger0 = max(larger0, s0[c]);
                    }
                    if key + c >= lo1 && key + c < hi1 && pair_visible(place1, batch, head, row1, key + c) {
                        shown1 |= 1u << c;
                        larger1 = max(larger1, s1[c]);
                    }
                }
            } else {
                for (var c = 0u; c < KEYS; c++) {
                    larger0 = max(larger0, s0[c]);
                    larger1 = max(larger1, s1[c]);
                }
            }
            let keep0 = exp(m0 - larger0);
            let keep1 = exp(m1 - larger1);
            m0 = larger0;
            m1 = larger1;
            l0 *= keep0;
            l1 *= keep1;
            if edge {
                for (var c = 0u; c < KEYS; c++) {
                    s0[c] = select(0.0, exp(s0[c] - m0), (shown0 & (1u << c)) != 0u);
                    s1[c] = select(0.0, exp(s1[c] - m1), (shown1 & (1u << c)) != 0u);
                    l0 += s0[c];
                    l1 += s1[c];
                }
                for (var d = 0u; d < V4; d++) {
                    var x0 = o0[d] * keep0;
                    var x1 = o1[d] * keep1;
                    for (var c = 0u; c < KEYS; c++) {
                        let v4 = v_tile[(t + c) * V4 + d];
                        x0 = select(x0, fma(vec4<f32>(s0[c]), v4, x0), s0[c] != 0.0);
                        x1 = select(x1, fma(vec4<f32>(s1[c]), v4, x1), s1[c] != 0.0);
                    }
                    o0[d] = x0;
                    o1[d] = x1;
                }
            } else {
                for (var c = 0u; c < KEYS; c++) {
                    s0[c] = exp(s0[c] - m0);
                    s1[c] = exp(s1[c] - m1);
                    l0 += s0[c];
                    l1 += s1[c];
                }
                for (var d = 0u; d < V4; d++) {
                    var x0 = o0[d] * keep0;
                    var x1 = o1[d] * keep1;
                    for (var c = 0u; c < KEYS; c++) {
                        let v4 = v_tile[(t + c) * V4 + d];
                        x0 = fma(vec4<f32>(s0[c]), v4, x0);
                        x1 = fma(vec4<f32>(s1[c]), v4, x1);
                    }
                    o0[d] = x0;
                    o1[d] = x1;
                }
            }
        }
    }

    let out_first = params.out_base + batch * params.out_batch + head * params.out_head;
    let sum0 = with_sink(m0, l0, head, place0.real);
    let sum1 = with_sink(m1, l1, head, place1.real);
    let norm0 = select(0.0, exp(m0 - sum0.x) / sum0.y, sum0.y > 0.0);
    let norm1 = select(0.0, exp(m1 - sum1.x) / sum1.y, sum1.y > 0.0);
    for (var d = 0u; d < V4; d++) {
        let at = out_first + d * 4u;
        if row_first + lane <= row_last {
            store_out4(at + row0 * params.out_row, V_HEAD_DIM - d * 4u, o0[d] * norm0);
        }
        if row_first + lane + THREADS <= row_last {
            store_out4(at + row1 * params.out_row, V_HEAD_DIM - d * 4u, o1[d] * norm1);
        }
    }
    if row_first + lane <= row_last { store_lse(batch, head, row0, sum0.x, sum0.y); }
    if row_first + lane + THREADS <= row_last { store_lse(batch, head, row1, sum1.x, sum1.y); }
}
