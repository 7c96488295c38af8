// d_q_i = sum over j of d_s[i, j] k_j in one pass over the keys, as software GPUs like it: whole rows, and scores made anew.
// One workgroup owns BLOCK rows of one head; an invocation owns ROWS neighbours of them with all their columns. Keys
// and values pass through workgroup memory, KEYS at a time, and are read from there at an address that is a constant of the
// shader: loaded once for all invocations of a subgroup.
// Expects: HEAD_DIM, V_HEAD_DIM, BLOCK, ROWS, KEYS, PAIRS, Params, k_head_at, v_head_at, k_at, v_at, block_begin, block_end, place_of,
// pair_gradient, pair_visible, read_seed, kept, finite, stats, load_q4, load_k4, load_v4, load_d_out4, store_out4.
// Provides: d_q_lane_kernel.
const THREADS: u32 = BLOCK / ROWS;
const PAIRS_EACH: u32 = ROWS * KEYS;
const D4: u32 = (HEAD_DIM + 3u) / 4u;
const V4: u32 = (V_HEAD_DIM + 3u) / 4u;
const K_ROUNDS: u32 = (KEYS * D4 + THREADS - 1u) / THREADS;
const V_ROUNDS: u32 = (KEYS * V4 + THREADS - 1u) / THREADS;
const_assert BLOCK % ROWS == 0u;

var<workgroup> k_tile: array<vec4<f32>, KEYS * D4>;
var<workgroup> v_tile: array<vec4<f32>, KEYS * V4>;
var<workgroup> k_again: array<vec4<f32>, KEYS * D4>;

fn dot_onto(a: vec4<f32>, b: vec4<f32>, c: f32) -> f32 {
    return fma(a.w, b.w, fma(a.z, b.z, fma(a.y, b.y, fma(a.x, b.x, c))));
}

@compute @workgroup_size(THREADS)
fn d_q_lane_kernel(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_id) local: vec3<u32>) {
    let id = flat_id(group);
    if id >= params.workgroups { return; }
    read_seed();
    // lavapipe divides to find the id, anew after every barrier; what has come through a loop, here of no rounds, it keeps.
    var lane = local.x;
    for (var i = params.rows_each; i < 4u; i++) { lane += i; }
    let tile = params.tiles - 1u - id % params.tiles;       // the longest rows of a causal mask first
    let head = id / params.tiles % params.heads;
    let batch = id / params.tiles / params.heads;
    let kv_head = kv_head_of(head);
    let q_first = params.q_base + batch * params.q_batch + head * params.q_head;
    let d_out_first = params.d_out_base + batch * params.d_out_batch + head * params.d_out_head;
    let k_first = k_head_at(batch, kv_head);
    let v_first = v_head_at(batch, kv_head);

    let row_first = tile * BLOCK;
    let row_last = min(row_first + BLOCK, params.q_len) - 1u;
    let begin = block_begin(batch, row_first) / KEYS * KEYS;
    let end = block_end(batch, row_last);

    let own_first = row_first + lane * ROWS;
    var row: array<u32, ROWS>;
    var place: array<Place, ROWS>;
    var lo: array<u32, ROWS>;
    var hi: array<u32, ROWS>;
    var any_begin = end;    // some row of the invocation sees some keys from here ...
    var any_end = 0u;       // ... to here
    var all_begin = 0u;     // every row sees the keys from here ...
    var all_end = end;      // ... to here
    var q: array<vec4<f32>, ROWS * D4>;
    var d_out_row: array<vec4<f32>, ROWS * V4>;
    var d_q: array<vec4<f32>, ROWS * D4>;
    var lse: array<f32, ROWS>;
    var delta: array<f32, ROWS>;
    for (var r = 0u; r < ROWS; r++) {
        row[r] = min(own_first + r, row_last);
        place[r] = place_of(params.batch_first + batch, params.q_first + row[r]);
        lo[r] = block_begin(batch, row[r]);
        hi[r] = block_end(batch, row[r]);
        any_begin = min(any_begin, lo[r]);
        any_end = max(any_end, hi[r]);
        all_begin = max(all_begin, lo[r]);
        all_end = min(all_end, hi[r]);
        let at = params.stats_base + 2u * ((batch * params.heads + head) * params.q_len + row[r]);
        lse[r] = bitcast<f32>(stats[at]);
        delta[r] = bitcast<f32>(stats[at + 1u]);
        for (var d = 0u; d < D4; d++) {
            q[r * D4 + d] = load_q4(q_first + row[r] * params.q_row + d * 4u, HEAD_DIM - d * 4u);
        }
        for (var d = 0u; d < V4; d++) {
            d_out_row[r * V4 + d] = load_d_out4(d_out_first + row[r] * params.d_out_row + d * 4u, V_HEAD_DIM - d * 4u);
        }
    }
    if own_first > row_last { any_end = 0u; }

    // Which four columns of which key the invocation brings next.
    var k_item = begin * D4 + lane;
    var v_item = begin * V4 + lane;
    for (var key = begin; key < end; key += KEYS) {
        workgroupBarrier();
        for (var i = 0u; i < K_ROUNDS; i++) {
            let item = k_item + i * THREADS;
            if item < (key + KEYS) * D4 {
                let at = k_at(k_first, batch, min(item / D4, params.kv_len - 1u), 0u, false);
                let d = item % D4 * 4u;
                let k4 = load_k4(at + d, HEAD_DIM - d);
                k_tile[item % (KEYS * D4)] = k4;
                k_again[item % (KEYS * D4)] = finite(k4);
            }
        }
        for (var i = 0u; i < V_ROUNDS; i++) {
            let item = v_item + i * THREADS;
            if item < (key + KEYS) * V4 {
                let at = v_at(v_first, batch, min(item / V4, params.kv_len - 1u), 0u, false);
                let d = item % V4 * 4u;
                v_tile[item % (KEYS * V4)] = load_v4(at + d, V_HEAD_DIM - d);
            }
        }
        workgroupBarrier();
        k_item += KEYS * D4;
        v_item += KEYS * V4;

        var s: array<f32, PAIRS_EACH>;
        var d_p: array<f32, PAIRS_EACH>;
        for (var d = 0u; d < D4; d++) {
            for (var c = 0u; c < KEYS; c++) {
                let k4 = k_tile[c * D4 + d];
                for (var r = 0u; r < ROWS; r++) {
                    s[c * ROWS + r] = dot_onto(q[r * D4 + d], k4, s[c * ROWS + r]);
                }
            }
        }
        for (var d = 0u; d < V4; d++) {
            for (var c = 0u; c < KEYS; c++) {
                let v4 = v_tile[c * V4 + d];
                for (var r = 0u; r < ROWS; r++) {
                    d_p[c * ROWS + r] = dot_onto(d_out_row[r * V4 + d], v4, d_p[c * ROWS + r]);
                }
            }
        }
        let edge = PAIRS || key < all_begin || key + KEYS > all_end;
        for (var c = 0u; c < KEYS; c++) {
            for (var r = 0u; r < ROWS; r++) {
                let gradient = pair_gradient(s[c * ROWS + r], place[r], batch, head, row[r], key + c);
                let keep = kept(1.0, place[r], batch, head, row[r], key + c);
                let d_s = exp(gradient.score - lse[r]) * (keep * d_p[c * ROWS + r] - delta[r]);
                s[c * ROWS + r] = d_s * gradient.by_product;
            }
        }
        if edge {
            for (var c = 0u; c < KEYS; c++) {
                for (var r = 0u; r < ROWS; r++) {
                    let in_band = key + c >= lo[r] && key + c < hi[r];
                    if !in_band || !pair_visible(place[r], batch, head, row[r], key + c) { s[c * ROWS + r] = 0.0; }
                }
            }
        }
        // Sums need other registers than scores: these are to be free by now.
        workgroupBarrier();
        for (var d = 0u; d < D4; d++) {
            for (var c = 0u; c < KEYS; c++) {
                let k4 = k_again[c * D4 + d];
                for (var r = 0u; r < ROWS; r++) {
                    let d_s = s[c * ROWS + r];
                    d_q[r * D4 + d] = fma(vec4<f32>(d_s), k4, d_q[r * D4 + d]);
                }
            }
        }
    }

    let out_first = params.out_base + batch * params.out_batch + head * params.out_head;
    for (var r = 0u; r < ROWS; r++) {
        if own_first + r <= row_last {
            for (var d = 0u; d < D4; d++) {
                store_out4(out_first + row[r] * params.out_row + d * 4u, HEAD_DIM - d * 4u, d_q[r * D4 + d]);
            }
        }
    }
}
