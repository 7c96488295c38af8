// d_i = sum over j of w[i, j] c_j in one pass over j, as hardware likes it: scores made anew, register tiles. Of queries, i is
// a row, j a key, w = d_s, c = k; of keys, i is a key, j a row, w = d_s, c = q; of values (OF_VALUES) w = p keep / (1 - p_drop), c = d_out.
// One workgroup owns BLOCK i x COLUMNS columns of one head and walks BLOCK_WALK j at a time, of one head after the other.
// Invocation (x, y) of 8 x ROW_GROUPS owns i y + ROW_GROUPS r, the tile's j 4x..4x+3, columns 4x + 32n.
// Tensors pass through workgroup memory in chunks of 32 columns, w through the place of the first; rows are padded against
// bank conflicts, and j 4x + c lies at row x + 8c, so that neighbours read neighbouring rows.
// Expects: HEAD_DIM, V_HEAD_DIM, COLUMNS, BLOCK, TILE_M, PAIRS, OF_VALUES, Params, block_begin, block_end, place_of, pair_gradient, pair_visible,
// read_seed, kept, finite, stats, store_out4, and what own_rows or own_keys provides.
// Provides: gradient_tile_kernel.
const BLOCK_WALK: u32 = 32u;
const CHUNK4: u32 = 8u;
const PITCH: u32 = CHUNK4 + 1u;
const ROW_GROUPS: u32 = BLOCK / TILE_M;
const THREADS: u32 = ROW_GROUPS * 8u;
const D_CHUNKS: u32 = (HEAD_DIM + 31u) / 32u;
const V_CHUNKS: u32 = (V_HEAD_DIM + 31u) / 32u;
const C_CHUNKS: u32 = COLUMNS / 32u;
const C_DIM: u32 = select(HEAD_DIM, V_HEAD_DIM, OF_VALUES);
const OWN_STEPS: u32 = BLOCK / ROW_GROUPS;
const WALK_STEPS: u32 = BLOCK_WALK / ROW_GROUPS;
const_assert COLUMNS % 32u == 0u && BLOCK % TILE_M == 0u && BLOCK_WALK % ROW_GROUPS == 0u && TILE_M == 4u
             && THREADS * 2u <= BLOCK_WALK * PITCH;

var<workgroup> own_tile: array<vec4<f32>, BLOCK * PITCH>;
var<workgroup> walk_tile: array<vec4<f32>, BLOCK_WALK * PITCH>;

// What an invocation works on, and its place in the workgroup.
struct Work { batch: u32, head: u32, own_first: u32, column: u32, x: u32, y: u32 }

// The same for every tile, but no compiler knows: of one chunk it would keep all in registers that there are not.
fn stage_own(w: Work, walk_first: u32, chunk: u32, second: bool) {
    let d = chunk * 32u + w.x * 4u + walk_first * (params.rows_each - TILE_M);
    for (var i = 0u; i < OWN_STEPS; i++) {
        let row = w.y + i * ROW_GROUPS;
        var value = vec4<f32>();
        if second {
            if d < V_HEAD_DIM { value = load_own24(own2_at(w.batch, w.head, w.own_first + row) + d, V_HEAD_DIM - d); }
        } else if d < HEAD_DIM {
            value = load_own14(own1_at(w.batch, w.head, w.own_first + row) + d, HEAD_DIM - d);
        }
        own_tile[row * PITCH + w.x] = value;
    }
}

fn walked_value(w: Work, j: u32, d: u32, second: bool) -> vec4<f32> {
    if second {
        if d >= V_HEAD_DIM { return vec4<f32>(); }
        return load_walk24(walk2_at(w.batch, w.head, j) + d, V_HEAD_DIM - d);
    }
    if d >= HEAD_DIM { return vec4<f32>(); }
    return load_walk14(walk1_at(w.batch, w.head, j) + d, HEAD_DIM - d);
}

fn stage_walked(w: Work, walk_first: u32, chunk: u32, second: bool) {
    for (var i = 0u; i < WALK_STEPS; i++) {
        let j = w.y + i * ROW_GROUPS;
        walk_tile[(j % 4u * 8u + j / 4u) * PITCH + w.x] = walked_value(w, walk_first + j, chunk * 32u + w.x * 4u, second);
    }
}

// What is summed up, in its order.
fn stage_summed(w: Work, walk_first: u32, chunk: u32) {
    for (var i = 0u; i < WALK_STEPS; i++) {
        let j = w.y + i * ROW_GROUPS;
        let d = w.column + chunk * 32u + w.x * 4u;
        walk_tile[j * PITCH + w.x] = finite(walked_value(w, walk_first + j, d, OF_VALUES));
    }
}

fn dot_onto(a: vec4<f32>, b: vec4<f32>, c: f32) -> f32 {
    return fma(a.w, b.w, fma(a.z, b.z, fma(a.y, b.y, fma(a.x, b.x, c))));
}

fn onto(p: vec4<f32>, v0: vec4<f32>, v1: vec4<f32>, v2: vec4<f32>, v3: vec4<f32>, o: vec4<f32>) -> vec4<f32> {
    return fma(vec4<f32>(p.w), v3, fma(vec4<f32>(p.z), v2, fma(vec4<f32>(p.y), v1, fma(vec4<f32>(p.x), v0, o))));
}

// Adds four columns of both sides to the products.
fn multiply(w: Work, d: u32, s: ptr<function, array<vec4<f32>, TILE_M>>) {
    let b0 = walk_tile[w.x * PITCH + d];
    let b1 = walk_tile[(w.x + 8u) * PITCH + d];
    let b2 = walk_tile[(w.x + 16u) * PITCH + d];
    let b3 = walk_tile[(w.x + 24u) * PITCH + d];
    for (var r = 0u; r < TILE_M; r++) {
        let a = own_tile[(w.y + r * ROW_GROUPS) * PITCH + d];
        (*s)[r] = vec4<f32>(dot_onto(a, b0, (*s)[r].x), dot_onto(a, b1, (*s)[r].y),
                            dot_onto(a, b2, (*s)[r].z), dot_onto(a, b3, (*s)[r].w));
    }
}

// w of a pair that its row sees.
fn weight_of(w: Work, own: u32, walked: u32, product: f32, d_p: f32) -> f32 {
    let at = pair_of(own, walked);
    let row = min(at.x, params.q_len - 1u);
    let key = min(at.y, params.kv_len - 1u);
    let place = place_of(params.batch_first + w.batch, params.q_first + row);
    let stat = params.stats_base + 2u * ((w.batch * params.heads + w.head) * params.q_len + row);
    let gradient = pair_gradient(product, place, w.batch, w.head, row, key);
    let keep = kept(1.0, place, w.batch, w.head, row, key);
    let p = exp(gradient.score - bitcast<f32>(stats[stat]));
    if OF_VALUES { return p * keep; }
    return p * (keep * d_p - bitcast<f32>(stats[stat + 1u])) * gradient.by_product;
}

// Whether the pair's row sees its key.
fn shown(w: Work, own: u32, walked: u32) -> bool {
    let at = pair_of(own, walked);
    let row = min(at.x, params.q_len - 1u);
    let in_band = at.x < params.q_len && at.y >= block_begin(w.batch, row) && at.y < block_end(w.batch, row);
    if !PAIRS { return in_band; }
    let place = place_of(params.batch_first + w.batch, params.q_first + row);
    return in_band && pair_visible(place, w.batch, w.head, row, min(at.y, params.kv_len - 1u));
}

// Goes on by one tile; on the edge, some pairs are excluded.
fn tile(w: Work, walk_first: u32, edge: bool, o: ptr<function, array<vec4<f32>, TILE_M * C_CHUNKS>>) {
    // The same, but where pairs take many registers no compiler knows, and unrolls.
    let chunk4 = select(CHUNK4, params.rows_each * 2u, PAIRS);
    var s: array<vec4<f32>, TILE_M>;
    var d_p: array<vec4<f32>, TILE_M>;
    for (var chunk = 0u; chunk < D_CHUNKS; chunk++) {
        workgroupBarrier();
        stage_own(w, walk_first, chunk, false);
        stage_walked(w, walk_first, chunk, false);
        workgroupBarrier();
        for (var d = 0u; d < chunk4; d++) { multiply(w, d, &s); }
    }
    if !OF_VALUES {
        for (var chunk = 0u; chunk < V_CHUNKS; chunk++) {
            workgroupBarrier();
            stage_own(w, walk_first, chunk, true);
            stage_walked(w, walk_first, chunk, true);
            workgroupBarrier();
            for (var d = 0u; d < chunk4; d++) { multiply(w, d, &d_p); }
        }
    }
    // Pairs of one row after the other, in loops that no compiler unrolls, and through the rows' own places in workgroup
    // memory: all at once would not fit the registers.
    workgroupBarrier();
    let walked = walk_first + 4u * w.x;
    let own_place = (w.y * 8u + w.x) * 2u;
    for (var r = 0u; r < TILE_M; r++) { own_tile[(w.y + r * ROW_GROUPS) * PITCH + w.x] = s[r]; }
    for (var half = 0u; half < 2u; half++) {
        if !OF_VALUES {
            walk_tile[own_place] = d_p[half * 2u];
            walk_tile[own_place + 1u] = d_p[half * 2u + 1u];
        }
        for (var i = 0u; i < params.rows_each / 2u; i++) {
            let row = w.y + (half * 2u + i) * ROW_GROUPS;
            let own = w.own_first + row;
            let product = own_tile[row * PITCH + w.x];
            let d_p4 = walk_tile[own_place + i];
            var weights = vec4<f32>(weight_of(w, own, walked, product.x, d_p4.x),
                                    weight_of(w, own, walked + 1u, product.y, d_p4.y),
                                    weight_of(w, own, walked + 2u, product.z, d_p4.z),
                                    weight_of(w, own, walked + 3u, product.w, d_p4.w));
            if edge {
                weights = select(vec4<f32>(), weights, vec4<bool>(shown(w, own, walked), shown(w, own, walked + 1u),
                                                                  shown(w, own, walked + 2u), shown(w, own, walked + 3u)));
            }
            own_tile[row * PITCH + w.x] = weights;
        }
    }
    workgroupBarrier();
    for (var n = 0u; n < C_CHUNKS; n++) {
        if n > 0u { workgroupBarrier(); }
        stage_summed(w, walk_first, n);
        workgroupBarrier();
        for (var k = 0u; k < chunk4; k++) {
            let c0 = walk_tile[(4u * k) * PITCH + w.x];
            let c1 = walk_tile[(4u * k + 1u) * PITCH + w.x];
            let c2 = walk_tile[(4u * k + 2u) * PITCH + w.x];
            let c3 = walk_tile[(4u * k + 3u) * PITCH + w.x];
            for (var r = 0u; r < TILE_M; r++) {
                let p = own_tile[(w.y + r * ROW_GROUPS) * PITCH + k];
                (*o)[n * TILE_M + r] = onto(p, c0, c1, c2, c3, (*o)[n * TILE_M + r]);
            }
        }
    }
}

@compute @workgroup_size(THREADS)
fn gradient_tile_kernel(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let id = flat_id(group);
    if id >= params.workgroups { return; }
    read_seed();
    const SLICES = (C_DIM + COLUMNS - 1u) / COLUMNS;
    let owner = id / SLICES / params.tiles % owners();
    let batch = id / SLICES / params.tiles / owners();
    let tile_own = params.tiles - 1u - id / SLICES % params.tiles;  // the longest rows of a causal mask first
    let own_first = tile_own * BLOCK;
    let own_last = min(own_first + BLOCK, own_len()) - 1u;
    let range = walk_range(batch, own_first, own_last);
    let whole = whole_range(batch, own_first, own_last);
    let heads = heads_of(owner);
    let column = id % SLICES * COLUMNS;
    let x = lane % 8u;
    let y = lane / 8u;

    var o: array<vec4<f32>, TILE_M * C_CHUNKS>;
    for (var head = heads.x; head < heads.y; head++) {
        let w = Work(batch, head, own_first, column, x, y);
        for (var walk_first = range.x / BLOCK_WALK * BLOCK_WALK; walk_first < range.y; walk_first += BLOCK_WALK) {
            let edge = PAIRS || walk_first < whole.x || walk_first + BLOCK_WALK > min(whole.y, range.y);
            tile(w, walk_first, edge, &o);
        }
    }

    let out_first = params.out_base + batch * params.out_batch + owner * params.out_head;
    for (var r = 0u; r < TILE_M; r++) {
        let own = own_first + y + r * ROW_GROUPS;
        if own <= own_last {
            for (var n = 0u; n < C_CHUNKS; n++) {
                let d = column + n * 32u + 4u * x;
                if d < C_DIM { store_out4(out_first + own * params.out_row + d, C_DIM - d, o[n * TILE_M + r]); }
            }
        }
    }
}
