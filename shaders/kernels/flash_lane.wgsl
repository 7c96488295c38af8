// o = softmax(score(Q K^T)) V in one pass over the keys, as software GPUs like it: online softmax, whole rows.
// One workgroup owns BLOCK_Q rows of one head; an invocation owns ROWS neighbours of them with all their columns.
// Keys and values pass through workgroup memory, KEYS at a time, and are read from there at an address that is a
// constant of the shader: loaded once for all invocations of a subgroup, with little arithmetic and checking around.
// Tiles of CLASS_Q x CLASS_KV that no row sees are skipped, by the workgroup where none of its rows sees them, else by
// the subgroup; what some row sees in part is masked ("edge").
// Expects: HEAD_DIM, V_HEAD_DIM, BLOCK_Q, ROWS, KEYS, CLASS_Q, CLASS_KV, GUARD, RANGES, Params, k_head_at, v_head_at, k_at, v_at, block_begin,
// block_end, place_of, pair_score, pair_visible, tile_class, with_sink, read_seed, keeps4, keep_scale, load_q4, load_k4, load_v4, store_out4, store_lse.
// Provides: flash_lane_kernel.
const THREADS: u32 = BLOCK_Q / ROWS;
const PAIRS_EACH: u32 = ROWS * KEYS;
const QUADS: u32 = KEYS / 4u;
const D4: u32 = (HEAD_DIM + 3u) / 4u;
const V4: u32 = (V_HEAD_DIM + 3u) / 4u;
const K_ROUNDS: u32 = (KEYS * D4 + THREADS - 1u) / THREADS;
const V_ROUNDS: u32 = (KEYS * V4 + THREADS - 1u) / THREADS;
const_assert BLOCK_Q % CLASS_Q == 0u && CLASS_Q % ROWS == 0u && CLASS_KV % KEYS == 0u && KEYS % 4u == 0u && PAIRS_EACH <= 32u;

var<workgroup> k_tile: array<vec4<f32>, KEYS * D4>;
var<workgroup> v_tile: array<vec4<f32>, KEYS * V4>;

fn dot_onto(a: vec4<f32>, b: vec4<f32>, c: f32) -> f32 {
    return fma(a.w, b.w, fma(a.z, b.z, fma(a.y, b.y, fma(a.x, b.x, c))));
}

// Whether some row of the workgroup sees some key of the tile.
fn is_needed(batch: u32, head: u32, row_first: u32, row_last: u32, kv_tile: u32) -> bool {
    var seen = false;
    for (var i = 0u; i < BLOCK_Q / CLASS_Q; i++) {
        let row = min(row_first + i * CLASS_Q, row_last);
        seen = seen || tile_class(batch, head, row / CLASS_Q, kv_tile) != 0u;
    }
    return seen;
}

@compute @workgroup_size(THREADS)
fn flash_lane_kernel(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_id) local: vec3<u32>) {
    let flat = flat_id(group);
    if flat >= params.workgroups { return; }
    read_seed();
    let range = select(0u, flat % params.ranges, RANGES);
    let id = select(flat, flat / params.ranges, RANGES);
    // lavapipe divides to find the id, anew after every barrier; what has come through a loop, here of no rounds, it keeps.
    var lane = local.x;
    for (var i = params.rows_each; i < 4u; i++) { lane += i; }
    let tile = params.tiles - 1u - id % params.tiles;       // the longest rows of a causal mask first
    let head = id / params.tiles % params.heads;
    let batch = id / params.tiles / params.heads;
    let slot = range * params.batch + batch;
    let kv_head = kv_head_of(head);
    let q_first = params.q_base + batch * params.q_batch + head * params.q_head;
    let k_first = k_head_at(batch, kv_head);
    let v_first = v_head_at(batch, kv_head);

    let row_first = tile * BLOCK_Q;
    let row_last = min(row_first + BLOCK_Q, params.q_len) - 1u;
    var begin = block_begin(batch, row_first) / CLASS_KV * CLASS_KV;
    var end = block_end(batch, row_last);
    if RANGES {
        begin = max(begin, range * params.range_keys);
        end = min(end, (range + 1u) * params.range_keys);
    }

    let own_first = row_first + lane * ROWS;
    let q_tile = min(own_first, row_last) / CLASS_Q;
    var row: array<u32, ROWS>;
    var place: array<Place, ROWS>;
    var lo: array<u32, ROWS>;
    var hi: array<u32, ROWS>;
    var any_begin = end;    // some row of the invocation sees some keys from here ...
    var any_end = 0u;       // ... to here
    var all_begin = 0u;     // every row sees the keys from here ...
    var all_end = end;      // ... to here
    var q: array<vec4<f32>, ROWS * D4>;
    var o: array<vec4<f32>, ROWS * V4>;
    var m: array<f32, ROWS>;
    var l: array<f32, ROWS>;
    for (var r = 0u; r < ROWS; r++) {
        row[r] = min(own_first + r, row_last);
        place[r] = place_of(params.batch_first + batch, params.q_first + row[r]);
        lo[r] = block_begin(batch, row[r]);
        hi[r] = block_end(batch, row[r]);
        any_begin = min(any_begin, lo[r]);
        any_end = max(any_end, hi[r]);
        all_begin = max(all_begin, lo[r]);
        all_end = min(all_end, hi[r]);
        m[r] = LOWEST;
        for (var d = 0u; d < D4; d++) {
            q[r * D4 + d] = load_q4(q_first + row[r] * params.q_row + d * 4u, HEAD_DIM - d * 4u);
        }
    }
    if own_first > row_last { any_end = 0u; }

    // Which four columns of which key the invocation brings next: counted along, where arithmetic on `lane` would be
    // done anew after every barrier.
    var k_item = begin * D4 + lane;
    var v_item = begin * V4 + lane;
    for (var tile_first = begin; tile_first < end; tile_first += CLASS_KV) {
        if !is_needed(batch, head, row_first, row_last, tile_first / CLASS_KV) {
            k_item += CLASS_KV * D4;
            v_item += CLASS_KV * V4;
            continue;
        }
        let kind = tile_class(batch, head, q_tile, tile_first / CLASS_KV);
        for (var key = tile_first; key < min(tile_first + CLASS_KV, end); key += KEYS) {
            workgroupBarrier();
            for (var i = 0u; i < K_ROUNDS; i++) {
                let item = k_item + i * THREADS;
                if item < (key + KEYS) * D4 {
                    let at = k_at(k_first, batch, min(item / D4, params.kv_len - 1u), 0u, false);
                    let d = item % D4 * 4u;
                    k_tile[item % (KEYS * D4)] = load_k4(at + d, HEAD_DIM - d);
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
            if kind == 0u || key >= any_end || key + KEYS <= any_begin { continue; }

            var s: array<f32, PAIRS_EACH>;
            for (var d = 0u; d < D4; d++) {
                for (var c = 0u; c < KEYS; c++) {
                    let k4 = k_tile[c * D4 + d];
                    for (var r = 0u; r < ROWS; r++) {
                        s[c * ROWS + r] = dot_onto(q[r * D4 + d], k4, s[c * ROWS + r]);
                    }
                }
            }
            for (var c = 0u; c < KEYS; c++) {
                for (var r = 0u; r < ROWS; r++) {
                    s[c * ROWS + r] = pair_score(s[c * ROWS + r], place[r], batch, head, row[r], key + c);
                }
            }
            var hidden = 0u;    // a bit a pair
            if kind == 2u || key < all_begin || key + KEYS > all_end {
                for (var c = 0u; c < KEYS; c++) {
                    for (var r = 0u; r < ROWS; r++) {
                        let in_band = key + c >= lo[r] && key + c < hi[r];
                        if !in_band || !pair_visible(place[r], batch, head, row[r], key + c) {
                            hidden |= 1u << (c * ROWS + r);
                        }
                    }
                }
            }
            var keep: array<f32, ROWS>;
            for (var r = 0u; r < ROWS; r++) {
                var larger = m[r];
                for (var c = 0u; c < KEYS; c++) {
                    let is_hidden = (hidden & (1u << (c * ROWS + r))) != 0u;
                    larger = max(larger, select(s[c * ROWS + r], LOWEST, is_hidden));
                }
                keep[r] = exp(m[r] - larger);
                m[r] = larger;
                l[r] *= keep[r];
                for (var c = 0u; c < KEYS; c++) {
                    let is_hidden = (hidden & (1u << (c * ROWS + r))) != 0u;
                    let p = select(exp(s[c * ROWS + r] - larger), 0.0, is_hidden);
                    s[c * ROWS + r] = p;
                    l[r] += p;
                }
                for (var g = 0u; g < QUADS; g++) {
                    let keeps = keeps4(place[r], batch, head, row[r], key + 4u * g);
                    for (var c = 0u; c < 4u; c++) {
                        s[(4u * g + c) * ROWS + r] = select(0.0, s[(4u * g + c) * ROWS + r], keeps[c]);
                    }
                }
            }
            for (var d = 0u; d < V4; d++) {
                for (var r = 0u; r < ROWS; r++) { o[r * V4 + d] *= keep[r]; }
                for (var c = 0u; c < KEYS; c++) {
                    let v4 = v_tile[c * V4 + d];
                    for (var r = 0u; r < ROWS; r++) {
                        let p = s[c * ROWS + r];
                        let sum = fma(vec4<f32>(p), v4, o[r * V4 + d]);
                        // A pair that is excluded, or weighs nothing, adds nothing even if its value is NaN.
                        o[r * V4 + d] = select(o[r * V4 + d], sum, !GUARD || p != 0.0);
                    }
                }
            }
        }
    }

    let out_first = params.out_base + slot * params.out_batch + head * params.out_head;
    for (var r = 0u; r < ROWS; r++) {
        if own_first + r <= row_last {
            let sum = with_sink(m[r], l[r], head, place[r].real);
            let norm = select(0.0, exp(m[r] - sum.x) / sum.y, sum.y > 0.0) * keep_scale();
            for (var d = 0u; d < V4; d++) {
                store_out4(out_first + row[r] * params.out_row + d * 4u, V_HEAD_DIM - d * 4u, o[r * V4 + d] * norm);
            }
            store_lse(slot, head, row[r], sum.x, sum.y);
        }
    }
}
