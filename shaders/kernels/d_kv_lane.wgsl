// d_k_j = sum over i of d_s[i, j] q_i, d_v_j = sum over i of p[i, j] keep / (1 - p_drop) d_out_i, over the rows of all heads
// of a group, in one pass over them, as software GPUs like it: whole keys, and scores made anew.
// One workgroup owns BLOCK keys of one K/V head; an invocation owns ROWS neighbours of them with all their columns.
// Queries and gradients of out pass through workgroup memory, QUERIES at a time, and are read from there at an address that
// is a constant of the shader: loaded once for all invocations of a subgroup.
// Expects: HEAD_DIM, V_HEAD_DIM, BLOCK, ROWS, QUERIES, PAIRS, Params, k_head_at, v_head_at, k_at, v_at, block_begin, block_end,
// first_ending_after, first_beginning_at, place_of, pair_gradient, pair_visible, read_seed, kept, finite, stats, load_q4, load_k4, load_v4,
// load_d_out4, store_d_k4, store_d_v4.
// Provides: d_kv_lane_kernel.
const THREADS: u32 = BLOCK / ROWS;
const PAIRS_EACH: u32 = ROWS * QUERIES;
const D4: u32 = (HEAD_DIM + 3u) / 4u;
const V4: u32 = (V_HEAD_DIM + 3u) / 4u;
const Q_ROUNDS: u32 = (QUERIES * D4 + THREADS - 1u) / THREADS;
const O_ROUNDS: u32 = (QUERIES * V4 + THREADS - 1u) / THREADS;
const_assert BLOCK % ROWS == 0u;

var<workgroup> q_tile: array<vec4<f32>, QUERIES * D4>;
var<workgroup> d_out_tile: array<vec4<f32>, QUERIES * V4>;
var<workgroup> q_again: array<vec4<f32>, QUERIES * D4>;
var<workgroup> d_out_again: array<vec4<f32>, QUERIES * V4>;

fn dot_onto(a: vec4<f32>, b: vec4<f32>, c: f32) -> f32 {
    return fma(a.w, b.w, fma(a.z, b.z, fma(a.y, b.y, fma(a.x, b.x, c))));
}

@compute @workgroup_size(THREADS)
fn d_kv_lane_kernel(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_id) local: vec3<u32>) {
    let id = flat_id(group);
    if id >= params.workgroups { return; }
    read_seed();
    // lavapipe divides to find the id, anew after every barrier; what has come through a loop, here of no rounds, it keeps.
    var lane = local.x;
    for (var i = params.rows_each; i < 4u; i++) { lane += i; }
    let tile = id % params.tiles;                           // the keys that most rows of a causal mask see first
    let kv_head = id / params.tiles % params.kv_heads;
    let batch = id / params.tiles / params.kv_heads;
    let k_first = k_head_at(batch, kv_head);
    let v_first = v_head_at(batch, kv_head);

    let key_first = tile * BLOCK;
    let key_last = min(key_first + BLOCK, params.kv_len) - 1u;
    let begin = first_ending_after(batch, key_first) / QUERIES * QUERIES;
    let end = first_beginning_at(batch, key_last + 1u);

    let own_first = key_first + lane * ROWS;
    var key: array<u32, ROWS>;
    var k: array<vec4<f32>, ROWS * D4>;
    var v: array<vec4<f32>, ROWS * V4>;
    var d_k: array<vec4<f32>, ROWS * D4>;
    var d_v: array<vec4<f32>, ROWS * V4>;
    for (var r = 0u; r < ROWS; r++) {
        key[r] = min(own_first + r, key_last);
        for (var d = 0u; d < D4; d++) {
            k[r * D4 + d] = load_k4(k_at(k_first, batch, key[r], 0u, false) + d * 4u, HEAD_DIM - d * 4u);
        }
        for (var d = 0u; d < V4; d++) {
            v[r * V4 + d] = load_v4(v_at(v_first, batch, key[r], 0u, false) + d * 4u, V_HEAD_DIM - d * 4u);
        }
    }

    for (var head = kv_head * params.group_size; head < (kv_head + 1u) * params.group_size; head++) {
        let q_first = params.q_base + batch * params.q_batch + head * params.q_head;
        let d_out_first = params.d_out_base + batch * params.d_out_batch + head * params.d_out_head;
        let stats_first = params.stats_base + 2u * (batch * params.heads + head) * params.q_len;
        // Which four columns of which row the invocation brings next.
        var q_item = begin * D4 + lane;
        var o_item = begin * V4 + lane;
        for (var row = begin; row < end; row += QUERIES) {
            workgroupBarrier();
            for (var i = 0u; i < Q_ROUNDS; i++) {
                let item = q_item + i * THREADS;
                if item < (row + QUERIES) * D4 {
                    let d = item % D4 * 4u;
                    let at = q_first + min(item / D4, params.q_len - 1u) * params.q_row;
                    let q4 = load_q4(at + d, HEAD_DIM - d);
                    q_tile[item % (QUERIES * D4)] = q4;
                    q_again[item % (QUERIES * D4)] = finite(q4);
                }
            }
            for (var i = 0u; i < O_ROUNDS; i++) {
                let item = o_item + i * THREADS;
                if item < (row + QUERIES) * V4 {
                    let d = item % V4 * 4u;
                    let at = d_out_first + min(item / V4, params.q_len - 1u) * params.d_out_row;
                    let o4 = load_d_out4(at + d, V_HEAD_DIM - d);
                    d_out_tile[item % (QUERIES * V4)] = o4;
                    d_out_again[item % (QUERIES * V4)] = finite(o4);
                }
            }
            workgroupBarrier();
            q_item += QUERIES * D4;
            o_item += QUERIES * V4;

            var s: array<f32, PAIRS_EACH>;
            var d_p: array<f32, PAIRS_EACH>;
            for (var d = 0u; d < D4; d++) {
                for (var c = 0u; c < QUERIES; c++) {
                    let q4 = q_tile[c * D4 + d];
                    for (var r = 0u; r < ROWS; r++) {
                        s[c * ROWS + r] = dot_onto(k[r * D4 + d], q4, s[c * ROWS + r]);
                    }
                }
            }
            for (var d = 0u; d < V4; d++) {
                for (var c = 0u; c < QUERIES; c++) {
                    let o4 = d_out_tile[c * V4 + d];
                    for (var r = 0u; r < ROWS; r++) {
                        d_p[c * ROWS + r] = dot_onto(v[r * V4 + d], o4, d_p[c * ROWS + r]);
                    }
                }
            }
            for (var c = 0u; c < QUERIES; c++) {
                let query = min(row + c, params.q_len - 1u);
                let place = place_of(params.batch_first + batch, params.q_first + query);
                let lo = block_begin(batch, query);
                let hi = select(block_end(batch, query), 0u, row + c >= params.q_len);
                let lse = bitcast<f32>(stats[stats_first + 2u * query]);
                let delta = bitcast<f32>(stats[stats_first + 2u * query + 1u]);
                let edge = PAIRS || lo > key_first || hi <= key_last;
                for (var r = 0u; r < ROWS; r++) {
                    let gradient = pair_gradient(s[c * ROWS + r], place, batch, head, query, key[r]);
                    let keep = kept(1.0, place, batch, head, query, key[r]);
                    let p = exp(gradient.score - lse);
                    s[c * ROWS + r] = p * keep;
                    d_p[c * ROWS + r] = p * (keep * d_p[c * ROWS + r] - delta) * gradient.by_product;
                }
                if edge {
                    for (var r = 0u; r < ROWS; r++) {
                        let in_band = key[r] >= lo && key[r] < hi;
                        if !in_band || !pair_visible(place, batch, head, query, key[r]) {
                            s[c * ROWS + r] = 0.0;
                            d_p[c * ROWS + r] = 0.0;
                        }
                    }
                }
            }
            // Sums need other registers than scores: these are to be free by now.
            workgroupBarrier();
            for (var d = 0u; d < V4; d++) {
                for (var c = 0u; c < QUERIES; c++) {
                    let o4 = d_out_again[c * V4 + d];
                    for (var r = 0u; r < ROWS; r++) {
                        let p = s[c * ROWS + r];
                        d_v[r * V4 + d] = fma(vec4<f32>(p), o4, d_v[r * V4 + d]);
                    }
                }
            }
            for (var d = 0u; d < D4; d++) {
                for (var c = 0u; c < QUERIES; c++) {
                    let q4 = q_again[c * D4 + d];
                    for (var r = 0u; r < ROWS; r++) {
                        let d_s = d_p[c * ROWS + r];
                        d_k[r * D4 + d] = fma(vec4<f32>(d_s), q4, d_k[r * D4 + d]);
                    }
                }
            }
        }
    }

    let d_k_first = params.d_k_base + batch * params.d_k_batch + kv_head * params.d_k_head;
    let d_v_first = params.d_v_base + batch * params.d_v_batch + kv_head * params.d_v_head;
    for (var r = 0u; r < ROWS; r++) {
        if own_first + r <= key_last {
            for (var d = 0u; d < D4; d++) {
                store_d_k4(d_k_first + key[r] * params.d_k_row + d * 4u, HEAD_DIM - d * 4u, d_k[r * D4 + d]);
            }
            for (var d = 0u; d < V4; d++) {
                store_d_v4(d_v_first + key[r] * params.d_v_row + d * 4u, V_HEAD_DIM - d * 4u, d_v[r * V4 + d]);
            }
        }
    }
}
