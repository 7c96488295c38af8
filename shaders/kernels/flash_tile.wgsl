// o = softmax(score(Q K^T)) V in one pass over the keys, as hardware likes it: online softmax, register tiles.
// One workgroup owns BLOCK_Q rows x V_COLUMNS output columns of one head and streams BLOCK_KV keys at a time.
// Invocation (x, y) of 8 x BLOCK_Q/4 owns rows 4y..4y+3, the tile's keys 4x..4x+3, output columns 4x + 32n.
// Q, K and V pass through workgroup memory in chunks of 32 columns; rows are padded against bank conflicts, and
// key 4x + c lies at row x + 8c, so that neighbours read neighbouring rows.
// Tiles that no row sees are skipped; only tiles that some row sees in part are masked ("edge"): `shown` has a bit
// for each of an invocation's 16 pairs.
// l is summed per invocation and over the row once, at the end.
// Expects: HEAD_DIM, V_HEAD_DIM, V_COLUMNS, BLOCK_Q, Q_RESIDENT, PAIRS, HEAVY, Params, block_begin, block_end, place_of, pair_score,
// pair_visible, tile_class, with_sink, load_q4, load_k4, load_v4, store_out4, store_lse.
// Provides: flash_tile_kernel.
const BLOCK_KV: u32 = 32u;
const PITCH: u32 = 9u;
const THREADS: u32 = BLOCK_Q * 2u;
const D_CHUNKS: u32 = (HEAD_DIM + 31u) / 32u;
const V_CHUNKS: u32 = V_COLUMNS / 32u;
const Q_CHUNKS: u32 = select(1u, D_CHUNKS, Q_RESIDENT);
const_assert V_COLUMNS % 32u == 0u && BLOCK_Q % 4u == 0u;

var<workgroup> q_tile: array<vec4<f32>, Q_CHUNKS * BLOCK_Q * PITCH>;
var<workgroup> p_tile: array<vec4<f32>, BLOCK_Q * PITCH>;
var<workgroup> kv_tile: array<vec4<f32>, BLOCK_KV * PITCH>;
var<workgroup> row_part: array<f32, BLOCK_Q * 8u>;

fn stage_q(lane: u32, first: u32, row_first: u32, chunk: u32) {
    let to = select(0u, chunk * BLOCK_Q * PITCH, Q_RESIDENT);
    for (var i = lane; i < BLOCK_Q * 8u; i += THREADS) {
        let d = chunk * 32u + i % 8u * 4u;
        let row = min(row_first + i / 8u, params.q_len - 1u);
        var x = vec4<f32>();
        if HEAD_DIM % 32u == 0u || d < HEAD_DIM { x = load_q4(first + row * params.q_row + d, HEAD_DIM - d); }
        q_tile[to + i / 8u * PITCH + i % 8u] = x;
    }
}

fn stage_k(lane: u32, first: u32, key_first: u32, chunk: u32) {
    for (var i = lane; i < BLOCK_KV * 8u; i += THREADS) {
        let d = chunk * 32u + i % 8u * 4u;
        let key = i / 8u;
        let row = min(key_first + key, params.kv_len - 1u);
        var x = vec4<f32>();
        if HEAD_DIM % 32u == 0u || d < HEAD_DIM { x = load_k4(first + row * params.k_row + d, HEAD_DIM - d); }
        kv_tile[(key % 4u * 8u + key / 4u) * PITCH + i % 8u] = x;
    }
}

fn stage_v(lane: u32, first: u32, key_first: u32, column: u32) {
    for (var i = lane; i < BLOCK_KV * 8u; i += THREADS) {
        let d = column + i % 8u * 4u;
        let row = min(key_first + i / 8u, params.kv_len - 1u);
        var x = vec4<f32>();
        if V_HEAD_DIM % 32u == 0u || d < V_HEAD_DIM { x = load_v4(first + row * params.v_row + d, V_HEAD_DIM - d); }
        kv_tile[i / 8u * PITCH + i % 8u] = x;
    }
}

fn dot_onto(a: vec4<f32>, b: vec4<f32>, c: f32) -> f32 {
    return fma(a.w, b.w, fma(a.z, b.z, fma(a.y, b.y, fma(a.x, b.x, c))));
}

fn onto(p: vec4<f32>, v0: vec4<f32>, v1: vec4<f32>, v2: vec4<f32>, v3: vec4<f32>, o: vec4<f32>) -> vec4<f32> {
    return fma(vec4<f32>(p.w), v3, fma(vec4<f32>(p.z), v2, fma(vec4<f32>(p.y), v1, fma(vec4<f32>(p.x), v0, o))));
}

// A pair that is excluded, or weighs nothing, adds nothing even if its value is NaN.
fn guarded(p: f32, v: vec4<f32>, o: vec4<f32>) -> vec4<f32> {
    return select(o, fma(vec4<f32>(p), v, o), p != 0.0);
}

// Which of four neighbouring keys the row sees.
fn shown4(place: Place, batch: u32, head: u32, row: u32, key: u32) -> vec4<bool> {
    let keys = vec4<u32>(key) + vec4<u32>(0u, 1u, 2u, 3u);
    let in_band = (keys >= vec4<u32>(block_begin(batch, row))) & (keys < vec4<u32>(block_end(batch, row)));
    if !PAIRS { return in_band; }
    return in_band & vec4<bool>(pair_visible(place, batch, head, row, key),
                                pair_visible(place, batch, head, row, key + 1u),
                                pair_visible(place, batch, head, row, key + 2u),
                                pair_visible(place, batch, head, row, key + 3u));
}

@compute @workgroup_size(THREADS)
fn flash_tile_kernel(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let id = flat_id(group);
    if id >= params.workgroups { return; }
    const SLICES = (V_HEAD_DIM + V_COLUMNS - 1u) / V_COLUMNS;
    let column = id % SLICES * V_COLUMNS;
    let tile = id / SLICES % params.tiles;
    let head = id / SLICES / params.tiles % params.heads;
    let batch = id / SLICES / params.tiles / params.heads;
    let kv_head = kv_head_of(head);
    let q_first = params.q_base + batch * params.q_batch + head * params.q_head;
    let k_first = params.k_base + batch * params.k_batch + kv_head * params.k_head;
    let v_first = params.v_base + batch * params.v_batch + kv_head * params.v_head;

    let tile_q = params.tiles - 1u - tile;
    let row_first = tile_q * BLOCK_Q;                       // the longest rows of a causal mask first
    let row_last = min(row_first + BLOCK_Q, params.q_len) - 1u;
    let begin = block_begin(batch, row_first) / BLOCK_KV * BLOCK_KV;
    let end = block_end(batch, row_last);
    let all_begin = block_begin(batch, row_last);           // every row sees the keys from here ...
    let all_end = block_end(batch, row_first);              // ... to here
    let x = lane % 8u;
    let y = lane / 8u;

    var o: array<vec4<f32>, 4u * V_CHUNKS>;
    var m = array<f32, 4>(LOWEST, LOWEST, LOWEST, LOWEST);
    var l: array<f32, 4>;
    if Q_RESIDENT {
        for (var chunk = 0u; chunk < D_CHUNKS; chunk++) { stage_q(lane, q_first, row_first, chunk); }
    }
    for (var key_first = begin; key_first < end; key_first += BLOCK_KV) {
        let kind = tile_class(batch, head, tile_q, key_first / BLOCK_KV);
        if kind == 0u { continue; }
        var s: array<vec4<f32>, 4>;
        for (var chunk = 0u; chunk < D_CHUNKS; chunk++) {
            workgroupBarrier();
            if !Q_RESIDENT { stage_q(lane, q_first, row_first, chunk); }
            stage_k(lane, k_first, key_first, chunk);
            workgroupBarrier();
            let q_at = select(0u, chunk * BLOCK_Q * PITCH, Q_RESIDENT) + y * 4u * PITCH;
            for (var d = 0u; d < 8u; d++) {
                let k0 = kv_tile[x * PITCH + d];
                let k1 = kv_tile[(x + 8u) * PITCH + d];
                let k2 = kv_tile[(x + 16u) * PITCH + d];
                let k3 = kv_tile[(x + 24u) * PITCH + d];
                for (var r = 0u; r < 4u; r++) {
                    let q4 = q_tile[q_at + r * PITCH + d];
                    s[r] = vec4<f32>(dot_onto(q4, k0, s[r].x), dot_onto(q4, k1, s[r].y),
                                     dot_onto(q4, k2, s[r].z), dot_onto(q4, k3, s[r].w));
                }
            }
        }

        let edge = kind == 2u || key_first < all_begin || key_first + BLOCK_KV > all_end;
        let key = key_first + 4u * x;
        var shown = 0xffffu;
        if HEAVY {
            // One row after the other, in a loop that no compiler unrolls, and through the row's own place in
            // workgroup memory: all four at once would not fit the registers.
            for (var r = 0u; r < 4u; r++) { p_tile[(y * 4u + r) * PITCH + x] = s[r]; }
            for (var r = 0u; r < params.rows_each; r++) {
                let row = min(row_first + 4u * y + r, row_last);
                let place = place_of(params.batch_first + batch, params.q_first + row);
                let at = (y * 4u + r) * PITCH + x;
                let products = p_tile[at];
                let t = vec4<f32>(pair_score(products.x, place, batch, head, row, key),
                                  pair_score(products.y, place, batch, head, row, key + 1u),
                                  pair_score(products.z, place, batch, head, row, key + 2u),
                                  pair_score(products.w, place, batch, head, row, key + 3u));
                p_tile[at] = t;
                var seen4 = vec4<bool>(true);
                if edge { seen4 = shown4(place, batch, head, row, key); }
                let kept = select(vec4<f32>(LOWEST), t, seen4);
                row_part[(y * 4u + r) * 8u + x] = max(max(kept.x, kept.y), max(kept.z, kept.w));
                shown &= ~(dot(select(vec4<u32>(1u, 2u, 4u, 8u), vec4<u32>(), seen4), vec4<u32>(1u)) << (4u * r));
            }
            for (var r = 0u; r < 4u; r++) { s[r] = p_tile[(y * 4u + r) * PITCH + x]; }
        } else {
            for (var r = 0u; r < 4u; r++) {
                let row = min(row_first + 4u * y + r, row_last);
                let place = place_of(params.batch_first + batch, params.q_first + row);
                s[r] = vec4<f32>(pair_score(s[r].x, place, batch, head, row, key),
                                 pair_score(s[r].y, place, batch, head, row, key + 1u),
                                 pair_score(s[r].z, place, batch, head, row, key + 2u),
                                 pair_score(s[r].w, place, batch, head, row, key + 3u));
                var seen4 = vec4<bool>(true);
                if edge { seen4 = shown4(place, batch, head, row, key); }
                let kept = select(vec4<f32>(LOWEST), s[r], seen4);
                row_part[(y * 4u + r) * 8u + x] = max(max(kept.x, kept.y), max(kept.z, kept.w));
                shown &= ~(dot(select(vec4<u32>(1u, 2u, 4u, 8u), vec4<u32>(), seen4), vec4<u32>(1u)) << (4u * r));
            }
        }
        workgroupBarrier();
        for (var r = 0u; r < 4u; r++) {
            var larger = m[r];
            for (var i = 0u; i < 8u; i++) { larger = max(larger, row_part[(y * 4u + r) * 8u + i]); }
            let keep = exp(m[r] - larger);
            m[r] = larger;
            var p = exp(s[r] - vec4<f32>(larger));
            if edge {
                let bits = vec4<u32>(shown >> (4u * r)) & vec4<u32>(1u, 2u, 4u, 8u);
                p = select(vec4<f32>(), p, bits != vec4<u32>());
            }
            p_tile[(y * 4u + r) * PITCH + x] = p;
            l[r] = fma(l[r], keep, (p.x + p.y) + (p.z + p.w));
            for (var n = 0u; n < V_CHUNKS; n++) { o[n * 4u + r] *= keep; }
        }

        for (var n = 0u; n < V_CHUNKS; n++) {
            if n > 0u { workgroupBarrier(); }
            stage_v(lane, v_first, key_first, column + n * 32u);
            workgroupBarrier();
            if edge {
                for (var k = 0u; k < 8u; k++) {
                    let v0 = kv_tile[(4u * k) * PITCH + x];
                    let v1 = kv_tile[(4u * k + 1u) * PITCH + x];
                    let v2 = kv_tile[(4u * k + 2u) * PITCH + x];
                    let v3 = kv_tile[(4u * k + 3u) * PITCH + x];
                    for (var r = 0u; r < 4u; r++) {
                        let p = p_tile[(y * 4u + r) * PITCH + k];
                        let at = n * 4u + r;
                        o[at] = guarded(p.w, v3, guarded(p.z, v2, guarded(p.y, v1, guarded(p.x, v0, o[at]))));
                    }
                }
            } else {
                for (var k = 0u; k < 8u; k++) {
                    let v0 = kv_tile[(4u * k) * PITCH + x];
                    let v1 = kv_tile[(4u * k + 1u) * PITCH + x];
                    let v2 = kv_tile[(4u * k + 2u) * PITCH + x];
                    let v3 = kv_tile[(4u * k + 3u) * PITCH + x];
                    for (var r = 0u; r < 4u; r++) {
                        o[n * 4u + r] = onto(p_tile[(y * 4u + r) * PITCH + k], v0, v1, v2, v3, o[n * 4u + r]);
                    }
                }
            }
        }
    }

    workgroupBarrier();
    for (var r = 0u; r < 4u; r++) { row_part[(y * 4u + r) * 8u + x] = l[r]; }
    workgroupBarrier();
    let out_first = params.out_base + batch * params.out_batch + head * params.out_head;
    for (var r = 0u; r < 4u; r++) {
        let row = row_first + 4u * y + r;
        if row <= row_last {
            var sum = 0.0;
            for (var i = 0u; i < 8u; i++) { sum += row_part[(y * 4u + r) * 8u + i]; }
            let place = place_of(params.batch_first + batch, params.q_first + row);
            let total = with_sink(m[r], sum, head, place.real);
            let norm = select(0.0, exp(m[r] - total.x) / total.y, total.y > 0.0);
            for (var n = 0u; n < V_CHUNKS; n++) {
                let d = column + n * 32u + 4u * x;
                if d < V_HEAD_DIM {
                    store_out4(out_first + row * params.out_row + d, V_HEAD_DIM - d, o[n * 4u + r] * norm);
                }
            }
            if x == 0u && column == 0u { store_lse(batch, head, row, total.x, total.y); }
        }
    }
}
