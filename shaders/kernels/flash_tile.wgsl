// o = softmax(score(Q K^T)) V in one pass over the keys, as hardware likes it: online softmax, register tiles.
// One workgroup owns BLOCK_Q rows x V_COLUMNS output columns of one head and streams BLOCK_KV keys at a time.
// Invocation (x, y) of 8 x ROW_GROUPS owns rows y + ROW_GROUPS r, the tile's keys 4x..4x+3, columns 4x + 32n.
// Q, K and V pass through workgroup memory in chunks of 32 columns, P through Q's place; rows are padded against bank
// conflicts, and key 4x + c lies at row x + 8c, so that neighbours read neighbouring rows.
// Tiles that no row sees are skipped. Those that every row sees whole have a loop of their own, written out, unless
// HEAVY; those that some row sees in part are masked ("edge"), in loops that no compiler unrolls: `hidden` has a bit for
// each of an invocation's pairs.
// l is summed per invocation and over the row once, at the end.
// Expects: HEAD_DIM, V_HEAD_DIM, V_COLUMNS, BLOCK_Q, TILE_M, PAIRS, HEAVY, ROLLED, RANGES, Params, k_head_at, v_head_at, k_at, v_at,
// block_begin, block_end, place_of, pair_score, pair_visible, tile_class, with_sink, DROPS, read_seed, keeps4, keep_scale, load_q4, load_k4, load_v4, store_out4, store_lse, Lane, lane_of, share,
// row_max, row_sum.
// Provides: flash_tile_kernel.
const BLOCK_KV: u32 = 32u;
const CHUNK4: u32 = 8u;
const PITCH: u32 = CHUNK4 + 1u;
const ROW_GROUPS: u32 = BLOCK_Q / TILE_M;
const THREADS: u32 = ROW_GROUPS * 8u;
const D_CHUNKS: u32 = (HEAD_DIM + 31u) / 32u;
const V_CHUNKS: u32 = V_COLUMNS / 32u;
const Q_STEPS: u32 = BLOCK_Q / ROW_GROUPS;      // all threads stage ROW_GROUPS rows at once
const KV_STEPS: u32 = BLOCK_KV / ROW_GROUPS;
const_assert V_COLUMNS % 32u == 0u && BLOCK_Q % TILE_M == 0u && BLOCK_KV % ROW_GROUPS == 0u && TILE_M <= 8u;

var<workgroup> qp_tile: array<vec4<f32>, BLOCK_Q * PITCH>;
var<workgroup> kv_tile: array<vec4<f32>, BLOCK_KV * PITCH>;

// What an invocation works on: its tile, where its tensors start, and its place in the workgroup.
struct Work {
    batch: u32, head: u32, row_first: u32, row_last: u32, column: u32, q_first: u32, k_first: u32, v_first: u32,
    x: u32, y: u32,
}

// Where loads take many registers, one row after the other, in a loop that no compiler unrolls.
fn steps_of(steps: u32) -> u32 { return select(steps, steps * params.rows_each / TILE_M, ROLLED); }

// Rows past the last one are read as a row that there is. Their place may overflow, and is then some place before.
fn stage_q(w: Work, chunk: u32) {
    let d = chunk * 32u + w.x * 4u;
    let row = (w.row_first + w.y) * params.q_row;
    let last = (params.q_len - 1u) * params.q_row;
    for (var i = 0u; i < steps_of(Q_STEPS); i++) {
        let at = w.q_first + min(row + i * ROW_GROUPS * params.q_row, last) + d;
        var value = vec4<f32>();
        if HEAD_DIM % 32u == 0u || d < HEAD_DIM { value = load_q4(at, HEAD_DIM - d); }
        qp_tile[(w.y + i * ROW_GROUPS) * PITCH + w.x] = value;
    }
}

fn stage_k(w: Work, key_first: u32, edge: bool, chunk: u32) {
    let d = chunk * 32u + w.x * 4u;
    for (var i = 0u; i < steps_of(KV_STEPS); i++) {
        let at = k_at(w.k_first, w.batch, key_first + w.y, i * ROW_GROUPS, edge);
        var value = vec4<f32>();
        if HEAD_DIM % 32u == 0u || d < HEAD_DIM { value = load_k4(at + d, HEAD_DIM - d); }
        let key = w.y + i * ROW_GROUPS;
        kv_tile[(key % 4u * 8u + key / 4u) * PITCH + w.x] = value;
    }
}

fn stage_v(w: Work, key_first: u32, edge: bool, chunk: u32) {
    let d = w.column + chunk * 32u + w.x * 4u;
    for (var i = 0u; i < steps_of(KV_STEPS); i++) {
        let at = v_at(w.v_first, w.batch, key_first + w.y, i * ROW_GROUPS, edge);
        var value = vec4<f32>();
        if V_HEAD_DIM % 32u == 0u || d < V_HEAD_DIM { value = load_v4(at + d, V_HEAD_DIM - d); }
        kv_tile[(w.y + i * ROW_GROUPS) * PITCH + w.x] = value;
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

// Adds four columns of q and k to the products.
fn multiply(w: Work, d: u32, s: ptr<function, array<vec4<f32>, TILE_M>>) {
    let k0 = kv_tile[w.x * PITCH + d];
    let k1 = kv_tile[(w.x + 8u) * PITCH + d];
    let k2 = kv_tile[(w.x + 16u) * PITCH + d];
    let k3 = kv_tile[(w.x + 24u) * PITCH + d];
    for (var r = 0u; r < TILE_M; r++) {
        let q4 = qp_tile[(w.y + r * ROW_GROUPS) * PITCH + d];
        (*s)[r] = vec4<f32>(dot_onto(q4, k0, (*s)[r].x), dot_onto(q4, k1, (*s)[r].y),
                            dot_onto(q4, k2, (*s)[r].z), dot_onto(q4, k3, (*s)[r].w));
    }
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

// The scores of four neighbouring keys, which of them the row sees, and the largest of those.
struct Scores { s: vec4<f32>, hidden: u32, largest: f32 }

fn scores_of(w: Work, row_at: u32, key: u32, edge: bool, products: vec4<f32>) -> Scores {
    let row = min(w.row_first + row_at, w.row_last);
    let place = place_of(params.batch_first + w.batch, params.q_first + row);
    let s = vec4<f32>(pair_score(products.x, place, w.batch, w.head, row, key),
                      pair_score(products.y, place, w.batch, w.head, row, key + 1u),
                      pair_score(products.z, place, w.batch, w.head, row, key + 2u),
                      pair_score(products.w, place, w.batch, w.head, row, key + 3u));
    var seen4 = vec4<bool>(true);
    if edge { seen4 = shown4(place, w.batch, w.head, row, key); }
    let kept = select(vec4<f32>(LOWEST), s, seen4);
    let hidden = dot(select(vec4<u32>(1u, 2u, 4u, 8u), vec4<u32>(), seen4), vec4<u32>(1u));
    return Scores(s, hidden, max(max(kept.x, kept.y), max(kept.z, kept.w)));
}

// A bit for each of an invocation's pairs that dropout drops: one row after the other, in a loop that no compiler
// unrolls.
fn dropped_of(w: Work, key: u32) -> u32 {
    var dropped = 0u;
    if DROPS {
        for (var r = 0u; r < params.rows_each; r++) {
            let row = min(w.row_first + w.y + r * ROW_GROUPS, w.row_last);
            let place = place_of(params.batch_first + w.batch, params.q_first + row);
            let keeps = keeps4(place, w.batch, w.head, row, key);
            dropped |= dot(select(vec4<u32>(1u, 2u, 4u, 8u), vec4<u32>(), keeps), vec4<u32>(1u)) << (4u * r);
        }
    }
    return dropped;
}

// The weights of a row's four pairs but those of which a bit is set.
fn without(p: vec4<f32>, bits: u32, r: u32) -> vec4<f32> {
    let marks = vec4<u32>(bits >> (4u * r)) & vec4<u32>(1u, 2u, 4u, 8u);
    return select(vec4<f32>(), p, marks == vec4<u32>());
}

// Whether every row sees every key of a tile.
fn is_whole(w: Work, tile_q: u32, key_first: u32, whole_begin: u32, whole_end: u32) -> bool {
    return key_first >= whole_begin && key_first + BLOCK_KV <= whole_end
        && tile_class(w.batch, w.head, tile_q, key_first / BLOCK_KV) == 1u;
}

// Goes on by one tile of keys.
fn tile(w: Work, key_first: u32, edge: bool, o: ptr<function, array<vec4<f32>, TILE_M * V_CHUNKS>>,
        m: ptr<function, array<f32, TILE_M>>, l: ptr<function, array<f32, TILE_M>>) {
    let chunk4 = params.rows_each * 2u;     // CHUNK4, but no compiler knows
    let key = key_first + 4u * w.x;
    let dropped = dropped_of(w, key);
    var s: array<vec4<f32>, TILE_M>;
    for (var chunk = 0u; chunk < D_CHUNKS; chunk++) {
        workgroupBarrier();
        stage_q(w, chunk);
        stage_k(w, key_first, edge, chunk);
        workgroupBarrier();
        if edge || HEAVY {
            for (var d = 0u; d < chunk4; d++) { multiply(w, d, &s); }
        } else {
            for (var d = 0u; d < CHUNK4; d++) { multiply(w, d, &s); }
        }
    }

    var hidden = 0u;
    var largest: array<f32, TILE_M>;
    if HEAVY {
        // One row after the other, in a loop that no compiler unrolls, and through the row's own place in
        // workgroup memory: all at once would not fit the registers.
        workgroupBarrier();
        for (var r = 0u; r < TILE_M; r++) { qp_tile[(w.y + r * ROW_GROUPS) * PITCH + w.x] = s[r]; }
        for (var r = 0u; r < params.rows_each; r++) {
            let row = w.y + r * ROW_GROUPS;
            let scores = scores_of(w, row, key, edge, qp_tile[row * PITCH + w.x]);
            qp_tile[row * PITCH + w.x] = scores.s;
            hidden |= scores.hidden << (4u * r);
            share(row, w.x, scores.largest);
        }
        for (var r = 0u; r < TILE_M; r++) { s[r] = qp_tile[(w.y + r * ROW_GROUPS) * PITCH + w.x]; }
    } else {
        for (var r = 0u; r < TILE_M; r++) {
            let row = w.y + r * ROW_GROUPS;
            let scores = scores_of(w, row, key, edge, s[r]);
            s[r] = scores.s;
            hidden |= scores.hidden << (4u * r);
            largest[r] = scores.largest;
            share(row, w.x, scores.largest);
        }
    }
    workgroupBarrier();
    for (var r = 0u; r < TILE_M; r++) {
        let row = w.y + r * ROW_GROUPS;
        let larger = max((*m)[r], row_max(row, largest[r]));
        let keep = exp((*m)[r] - larger);
        (*m)[r] = larger;
        var p = exp(s[r] - vec4<f32>(larger));
        if edge { p = without(p, hidden, r); }
        qp_tile[row * PITCH + w.x] = without(p, dropped, r);
        (*l)[r] = fma((*l)[r], keep, (p.x + p.y) + (p.z + p.w));
        for (var n = 0u; n < V_CHUNKS; n++) { (*o)[n * TILE_M + r] *= keep; }
    }

    for (var n = 0u; n < V_CHUNKS; n++) {
        if n > 0u { workgroupBarrier(); }
        stage_v(w, key_first, edge, n);
        workgroupBarrier();
        if edge {
            for (var k = 0u; k < chunk4; k++) {
                let v0 = kv_tile[(4u * k) * PITCH + w.x];
                let v1 = kv_tile[(4u * k + 1u) * PITCH + w.x];
                let v2 = kv_tile[(4u * k + 2u) * PITCH + w.x];
                let v3 = kv_tile[(4u * k + 3u) * PITCH + w.x];
                for (var r = 0u; r < TILE_M; r++) {
                    let p = qp_tile[(w.y + r * ROW_GROUPS) * PITCH + k];
                    let at = n * TILE_M + r;
                    (*o)[at] = guarded(p.w, v3, guarded(p.z, v2, guarded(p.y, v1, guarded(p.x, v0, (*o)[at]))));
                }
            }
        } else {
            for (var k = 0u; k < select(CHUNK4, chunk4, HEAVY); k++) {
                let v0 = kv_tile[(4u * k) * PITCH + w.x];
                let v1 = kv_tile[(4u * k + 1u) * PITCH + w.x];
                let v2 = kv_tile[(4u * k + 2u) * PITCH + w.x];
                let v3 = kv_tile[(4u * k + 3u) * PITCH + w.x];
                for (var r = 0u; r < TILE_M; r++) {
                    let p = qp_tile[(w.y + r * ROW_GROUPS) * PITCH + k];
                    (*o)[n * TILE_M + r] = onto(p, v0, v1, v2, v3, (*o)[n * TILE_M + r]);
                }
            }
        }
    }
}

@compute @workgroup_size(THREADS)
fn flash_tile_kernel(@builtin(workgroup_id) group: vec3<u32>, place_in_group: Lane) {
    let flat = flat_id(group);
    if flat >= params.workgroups { return; }
    read_seed();
    let range = select(0u, flat % params.ranges, RANGES);
    let id = select(flat, flat / params.ranges, RANGES);
    const SLICES = (V_HEAD_DIM + V_COLUMNS - 1u) / V_COLUMNS;
    let head = id / SLICES / params.tiles % params.heads;
    let batch = id / SLICES / params.tiles / params.heads;
    let slot = range * params.batch + batch;
    let kv_head = kv_head_of(head);
    let tile_q = params.tiles - 1u - id / SLICES % params.tiles;    // the longest rows of a causal mask first
    let row_first = tile_q * BLOCK_Q;
    let row_last = min(row_first + BLOCK_Q, params.q_len) - 1u;
    let lane = lane_of(place_in_group);
    let w = Work(batch, head, row_first, row_last, id % SLICES * V_COLUMNS,
                 params.q_base + batch * params.q_batch + head * params.q_head,
                 k_head_at(batch, kv_head), v_head_at(batch, kv_head), lane % 8u, lane / 8u);
    var begin = block_begin(batch, row_first) / BLOCK_KV * BLOCK_KV;
    var end = block_end(batch, row_last);
    if RANGES {
        begin = max(begin, range * params.range_keys);
        end = min(end, (range + 1u) * params.range_keys);
    }
    let whole_begin = block_begin(batch, row_last);                 // every row sees the keys from here ...
    let whole_end = min(block_end(batch, row_first), end);          // ... to here

    var o: array<vec4<f32>, TILE_M * V_CHUNKS>;
    var m: array<f32, TILE_M>;
    var l: array<f32, TILE_M>;
    for (var r = 0u; r < TILE_M; r++) { m[r] = LOWEST; }
    var key_first = begin;
    while key_first < end {
        while !HEAVY && is_whole(w, tile_q, key_first, whole_begin, whole_end) {
            tile(w, key_first, false, &o, &m, &l);
            key_first += BLOCK_KV;
        }
        if key_first < end && tile_class(batch, head, tile_q, key_first / BLOCK_KV) != 0u {
            let edge = !HEAVY || !is_whole(w, tile_q, key_first, whole_begin, whole_end);
            tile(w, key_first, edge, &o, &m, &l);
        }
        key_first += BLOCK_KV;
    }

    workgroupBarrier();
    for (var r = 0u; r < TILE_M; r++) { share(w.y + r * ROW_GROUPS, w.x, l[r]); }
    workgroupBarrier();
    let out_first = params.out_base + slot * params.out_batch + head * params.out_head;
    for (var r = 0u; r < TILE_M; r++) {
        let row = row_first + w.y + r * ROW_GROUPS;
        let sum = row_sum(w.y + r * ROW_GROUPS, l[r]);
        if row <= row_last {
            let place = place_of(params.batch_first + batch, params.q_first + row);
            let total = with_sink(m[r], sum, head, place.real);
            let norm = select(0.0, exp(m[r] - total.x) / total.y, total.y > 0.0) * keep_scale();
            for (var n = 0u; n < V_CHUNKS; n++) {
                let d = w.column + n * 32u + 4u * w.x;
                if d < V_HEAD_DIM {
                    store_out4(out_first + row * params.out_row + d, V_HEAD_DIM - d, o[n * TILE_M + r] * norm);
                }
            }
            if w.x == 0u && w.column == 0u { store_lse(slot, head, row, total.x, total.y); }
        }
    }
}
