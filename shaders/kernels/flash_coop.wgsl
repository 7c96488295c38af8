// o = softmax(score(Q K^T)) V in one pass over the keys, on matrix units: products of f16 fragments, sums in f32.
// One workgroup owns 4 fragments of SIZE rows of one head and streams BLOCK_KV keys at a time. A subgroup owns one
// fragment of rows, whose queries and sums of values stay in its registers; where a workgroup has fewer than 4
// subgroups, fragments take turns, and of more the rest only help to load.
// A fragment's elements cannot be touched: scores go through workgroup memory, where LANES invocations share a row.
// A row's sums are rescaled, through workgroup memory too, only where its maximum grew by more than 8 in log2 units:
// until then p is at most 2^8, which f16 holds. Adding products up in ordinary registers instead would take each
// fragment through workgroup memory at every tile: 4 to 10 % more cycles.
// SPLIT: an input is the sum of two f16, of which the second holds 2^11 times the rest; of the four products the three
// large ones are added up, the small ones first.
// Expects: SIZE, BLOCK_Q, BLOCK_KV, THREADS, SPLIT, HEAD_DIM, V_HEAD_DIM, PAIRS, HEAVY, RANGES, FragmentA, FragmentB,
// FragmentC, finite_half, high_half, nearest_half, Params, k_head_at, v_head_at, k_at, v_at, block_begin, block_end, place_of, pair_score, pair_visible,
// tile_class, with_sink, DROPS, read_seed, keeps4, keep_scale, load_q4, load_k4, load_v4, store_out4, store_lse.
// Provides: flash_coop_kernel.
const ROWS: u32 = BLOCK_Q / SIZE;                                   // fragments of rows
const LANES: u32 = THREADS / BLOCK_Q;
const KEYS: u32 = BLOCK_KV / LANES;                                 // of an invocation
const S_FRAGMENTS: u32 = BLOCK_KV / SIZE;
const D_FRAGMENTS: u32 = (HEAD_DIM + SIZE - 1u) / SIZE;
const V_FRAGMENTS: u32 = (V_HEAD_DIM + SIZE - 1u) / SIZE;
const V_GROUPS: u32 = (V_FRAGMENTS + S_FRAGMENTS - 1u) / S_FRAGMENTS;
const Q_PARTS: u32 = BLOCK_Q / BLOCK_KV;
const D_PAD: u32 = D_FRAGMENTS * SIZE;
const V_PAD: u32 = V_FRAGMENTS * SIZE;
// Rows start at multiples of 16 bytes, as loads of fragments ask for, in different banks.
const PITCH: u32 = max(D_PAD, V_PAD) + 8u;
const P_PITCH: u32 = BLOCK_KV + 8u;
const S_PITCH: u32 = BLOCK_KV + 4u;
const PARTS: u32 = select(1u, 2u, SPLIT);
const KV_LOW: u32 = (PARTS - 1u) * BLOCK_KV * PITCH;                // where the second parts start
const P_LOW: u32 = (PARTS - 1u) * BLOCK_Q * P_PITCH;
const REST: f32 = 2048.0;
const GROWTH: f32 = 5.545177;                                       // 8 ln 2
const_assert THREADS % BLOCK_Q == 0u && KEYS % 4u == 0u && KEYS <= 32u;

var<workgroup> kv_tile: array<f16, PARTS * BLOCK_KV * PITCH>;       // queries before the first key
var<workgroup> p_tile: array<f16, PARTS * BLOCK_Q * P_PITCH>;
var<workgroup> s_tile: array<f32, BLOCK_Q * S_PITCH>;
var<workgroup> row_part: array<f32, THREADS>;
var<workgroup> grown: array<u32, 4>;                                // some row's sums are to be rescaled: by turns

fn put4(at: u32, x: vec4<f32>) {
    let first = select(x, high_half(x), vec4<bool>(SPLIT));
    let high = vec4<f16>(first);
    kv_tile[at] = high.x;
    kv_tile[at + 1u] = high.y;
    kv_tile[at + 2u] = high.z;
    kv_tile[at + 3u] = high.w;
    if SPLIT {
        let low = vec4<f16>((x - first) * REST);
        let to = at + KV_LOW;
        kv_tile[to] = low.x;
        kv_tile[to + 1u] = low.y;
        kv_tile[to + 2u] = low.z;
        kv_tile[to + 3u] = low.w;
    }
}

fn stage_q(lane: u32, first: u32, row_first: u32) {
    for (var i = lane; i < BLOCK_KV * (D_PAD / 4u); i += THREADS) {
        let row = row_first + i / (D_PAD / 4u);
        let d = i % (D_PAD / 4u) * 4u;
        var x = vec4<f32>();
        if row < params.q_len && (HEAD_DIM % SIZE == 0u || d < HEAD_DIM) {
            x = load_q4(first + row * params.q_row + d, HEAD_DIM - d);
        }
        put4(i / (D_PAD / 4u) * PITCH + d, x);
    }
}

fn stage_k(lane: u32, batch: u32, first: u32, key_first: u32) {
    for (var i = lane; i < BLOCK_KV * (D_PAD / 4u); i += THREADS) {
        let row = key_first + i / (D_PAD / 4u);
        let d = i % (D_PAD / 4u) * 4u;
        var x = vec4<f32>();
        if row < params.kv_len && (HEAD_DIM % SIZE == 0u || d < HEAD_DIM) {
            x = load_k4(k_at(first, batch, row, 0u, false) + d, HEAD_DIM - d);
        }
        put4(i / (D_PAD / 4u) * PITCH + d, x);
    }
}

// A weight of 0 must not meet what is no finite f16: on the edge such values are 0 to all rows.
fn stage_v(lane: u32, batch: u32, first: u32, key_first: u32, edge: bool) {
    for (var i = lane; i < BLOCK_KV * (V_PAD / 4u); i += THREADS) {
        let row = key_first + i / (V_PAD / 4u);
        let d = i % (V_PAD / 4u) * 4u;
        var x = vec4<f32>();
        if row < params.kv_len && (V_HEAD_DIM % SIZE == 0u || d < V_HEAD_DIM) {
            x = load_v4(v_at(first, batch, row, 0u, false) + d, V_HEAD_DIM - d);
        }
        if edge { x = finite_half(x); }
        put4(i / (V_PAD / 4u) * PITCH + d, x);
    }
}

@compute @workgroup_size(THREADS)
fn flash_coop_kernel(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32,
                     @builtin(subgroup_id) subgroup: u32, @builtin(num_subgroups) subgroups: u32) {
    let flat = flat_id(group);
    if flat >= params.workgroups { return; }
    read_seed();
    let range = select(0u, flat % params.ranges, RANGES);
    let id = select(flat, flat / params.ranges, RANGES);
    let tile = id % params.tiles;
    let head = id / params.tiles % params.heads;
    let batch = id / params.tiles / params.heads;
    let slot = range * params.batch + batch;
    let kv_head = kv_head_of(head);
    let q_first = params.q_base + batch * params.q_batch + head * params.q_head;
    let k_first = k_head_at(batch, kv_head);
    let v_first = v_head_at(batch, kv_head);
    let out_first = params.out_base + slot * params.out_batch + head * params.out_head;

    let tile_q = params.tiles - 1u - tile;
    let row_first = tile_q * BLOCK_Q;                       // the longest rows of a causal mask first
    let row_last = min(row_first + BLOCK_Q, params.q_len) - 1u;
    var begin = block_begin(batch, row_first) / BLOCK_KV * BLOCK_KV;
    var end = block_end(batch, row_last);
    if RANGES {
        begin = max(begin, range * params.range_keys);
        end = min(end, (range + 1u) * params.range_keys);
    }
    let all_begin = block_begin(batch, row_last);           // every row sees the keys from here ...
    let all_end = block_end(batch, row_first);              // ... to here

    // Of an invocation: a row, and the keys and columns of it from `part * KEYS` on.
    let part = lane % LANES;
    let own = lane / LANES;
    let row = min(row_first + own, row_last);
    let place = place_of(params.batch_first + batch, params.q_first + row);
    let lo = block_begin(batch, row);
    let hi = block_end(batch, row);
    let s_at = own * S_PITCH + part * KEYS;
    let p_at = own * P_PITCH + part * KEYS;

    for (var turn = 0u; turn < ROWS; turn += subgroups) {
        let fragment = turn + subgroup;
        let works = fragment < ROWS;
        let s_to = fragment * SIZE * S_PITCH;
        let p_from = fragment * SIZE * P_PITCH;
        var q: array<FragmentA, D_FRAGMENTS>;
        var q_low: array<FragmentA, D_FRAGMENTS>;
        var o: array<FragmentC, V_GROUPS * S_FRAGMENTS>;
        for (var i = 0u; i < Q_PARTS; i++) {
            workgroupBarrier();
            stage_q(lane, q_first, row_first + i * BLOCK_KV);
            workgroupBarrier();
            if works && fragment * SIZE / BLOCK_KV == i {
                let start = (fragment * SIZE - i * BLOCK_KV) * PITCH;
                for (var d = 0u; d < D_FRAGMENTS; d++) {
                    q[d] = coopLoadT<FragmentA>(&kv_tile[start + d * SIZE], PITCH);
                    if SPLIT { q_low[d] = coopLoadT<FragmentA>(&kv_tile[KV_LOW + start + d * SIZE], PITCH); }
                }
            }
        }
        if lane < 4u { grown[lane] = 0u; }

        var m = LOWEST;
        var l = 0.0;                                        // of the weights that values are multiplied with
        var exact = 0.0;                                    // of the weights before they are rounded: for the lse
        var count = 0u;
        for (var key_first = begin; key_first < end; key_first += BLOCK_KV) {
            let kind = tile_class(batch, head, tile_q, key_first / BLOCK_KV);
            if kind == 0u { continue; }
            let edge = kind == 2u || key_first < all_begin || key_first + BLOCK_KV > all_end;
            workgroupBarrier();
            stage_k(lane, batch, k_first, key_first);
            workgroupBarrier();
            if works {
                var s: array<FragmentC, S_FRAGMENTS>;
                if SPLIT {
                    for (var d = 0u; d < D_FRAGMENTS; d++) {
                        for (var n = 0u; n < S_FRAGMENTS; n++) {
                            let k = coopLoad<FragmentB>(&kv_tile[n * SIZE * PITCH + d * SIZE], PITCH);
                            let k_low = coopLoad<FragmentB>(&kv_tile[KV_LOW + n * SIZE * PITCH + d * SIZE], PITCH);
                            s[n] = coopMultiplyAdd(q[d], k_low, s[n]);
                            s[n] = coopMultiplyAdd(q_low[d], k, s[n]);
                        }
                    }
                    for (var n = 0u; n < S_FRAGMENTS; n++) { s[n] = s[n] * (1.0 / REST); }
                }
                for (var d = 0u; d < D_FRAGMENTS; d++) {
                    for (var n = 0u; n < S_FRAGMENTS; n++) {
                        let k = coopLoad<FragmentB>(&kv_tile[n * SIZE * PITCH + d * SIZE], PITCH);
                        s[n] = coopMultiplyAdd(q[d], k, s[n]);
                    }
                }
                for (var n = 0u; n < S_FRAGMENTS; n++) { coopStoreT(s[n], &s_tile[s_to + n * SIZE], S_PITCH); }
            }
            workgroupBarrier();
            stage_v(lane, batch, v_first, key_first, edge);

            let key = key_first + part * KEYS;
            var x: array<f32, KEYS>;
            var larger = m;
            var shown = 0xffffffffu;
            var dropped = 0u;
            if DROPS {
                // Four at a time, in a loop that no compiler unrolls.
                for (var i = 0u; i < KEYS; i += params.rows_each) {
                    let keeps = keeps4(place, batch, head, row, key + i);
                    dropped |= dot(select(vec4<u32>(1u, 2u, 4u, 8u), vec4<u32>(), keeps), vec4<u32>(1u)) << i;
                }
            }
            if HEAVY {
                // In a loop that no compiler unrolls, and through the row's own place in workgroup memory: all at
                // once would not fit the registers.
                for (var i = 0u; i < KEYS / 4u * params.rows_each; i++) {
                    let t = pair_score(s_tile[s_at + i], place, batch, head, row, key + i);
                    s_tile[s_at + i] = t;
                    if edge && !(key + i >= lo && key + i < hi && pair_visible(place, batch, head, row, key + i)) {
                        shown &= ~(1u << i);
                    } else {
                        larger = max(larger, t);
                    }
                }
                for (var i = 0u; i < KEYS; i++) { x[i] = s_tile[s_at + i]; }
            } else {
                for (var i = 0u; i < KEYS; i++) {
                    x[i] = pair_score(s_tile[s_at + i], place, batch, head, row, key + i);
                }
                if edge {
                    for (var i = 0u; i < KEYS; i++) {
                        if !(key + i >= lo && key + i < hi && pair_visible(place, batch, head, row, key + i)) {
                            shown &= ~(1u << i);
                            x[i] = LOWEST;
                        }
                    }
                }
                for (var i = 0u; i < KEYS; i++) { larger = max(larger, x[i]); }
            }
            row_part[lane] = larger;
            let now = count % 2u;
            count++;
            if lane == 0u { grown[1u - now] = 0u; }
            workgroupBarrier();
            for (var i = 0u; i < LANES; i++) { larger = max(larger, row_part[own * LANES + i]); }
            var keep = 1.0;
            if larger > m + GROWTH {
                keep = exp(m - larger);
                l *= keep;
                exact *= keep;
                if m > LOWEST { grown[now] = 1u; }
                m = larger;
            }
            for (var i = 0u; i < KEYS; i++) {
                let kept = (dropped & (1u << i)) == 0u;
                let p = select(0.0, exp(x[i] - m), (shown & (1u << i)) != 0u);
                exact += p;
                if SPLIT {
                    let first = high_half(vec4<f32>(p)).x;
                    p_tile[p_at + i] = f16(select(0.0, first, kept));
                    p_tile[P_LOW + p_at + i] = f16(select(0.0, (p - first) * REST, kept));
                    l += p;
                } else {
                    let rounded = nearest_half(vec4<f32>(p)).x;
                    p_tile[p_at + i] = f16(select(0.0, rounded, kept));
                    l += rounded;
                }
            }
            workgroupBarrier();
            if grown[now] != 0u {
                for (var g = 0u; g < V_GROUPS; g++) {
                    workgroupBarrier();
                    if works {
                        for (var n = 0u; n < S_FRAGMENTS; n++) {
                            coopStoreT(o[g * S_FRAGMENTS + n], &s_tile[s_to + n * SIZE], S_PITCH);
                        }
                    }
                    workgroupBarrier();
                    for (var i = 0u; i < KEYS; i++) { s_tile[s_at + i] *= keep; }
                    workgroupBarrier();
                    if works {
                        for (var n = 0u; n < S_FRAGMENTS; n++) {
                            o[g * S_FRAGMENTS + n] = coopLoadT<FragmentC>(&s_tile[s_to + n * SIZE], S_PITCH);
                        }
                    }
                }
            }
            if works {
                for (var j = 0u; j < S_FRAGMENTS; j++) {
                    let p = coopLoadT<FragmentA>(&p_tile[p_from + j * SIZE], P_PITCH);
                    for (var n = 0u; n < V_FRAGMENTS; n++) {
                        let v = coopLoadT<FragmentB>(&kv_tile[j * SIZE * PITCH + n * SIZE], PITCH);
                        if SPLIT {
                            let p_low = coopLoadT<FragmentA>(&p_tile[P_LOW + p_from + j * SIZE], P_PITCH);
                            let v_low = coopLoadT<FragmentB>(&kv_tile[KV_LOW + j * SIZE * PITCH + n * SIZE], PITCH);
                            var small = FragmentC();
                            small = coopMultiplyAdd(p, v_low, small);
                            small = coopMultiplyAdd(p_low, v, small);
                            o[n] = o[n] + small * (1.0 / REST);
                        }
                        o[n] = coopMultiplyAdd(p, v, o[n]);
                    }
                }
            }
        }

        workgroupBarrier();
        row_part[lane] = l;
        workgroupBarrier();
        var sum = 0.0;
        for (var i = 0u; i < LANES; i++) { sum += row_part[own * LANES + i]; }
        workgroupBarrier();
        row_part[lane] = exact;
        workgroupBarrier();
        var exact_sum = 0.0;
        for (var i = 0u; i < LANES; i++) { exact_sum += row_part[own * LANES + i]; }
        let total = with_sink(m, sum, head, place.real);
        let exact_total = with_sink(m, exact_sum, head, place.real);
        let norm = select(0.0, exp(m - total.x) / total.y, total.y > 0.0) * keep_scale();
        let stored = own / SIZE >= turn && own / SIZE - turn < subgroups && row_first + own <= row_last;
        for (var g = 0u; g < V_GROUPS; g++) {
            workgroupBarrier();
            if works {
                for (var n = 0u; n < S_FRAGMENTS; n++) {
                    coopStoreT(o[g * S_FRAGMENTS + n], &s_tile[s_to + n * SIZE], S_PITCH);
                }
            }
            workgroupBarrier();
            if stored {
                for (var i = 0u; i < KEYS / 4u; i++) {
                    let d = g * BLOCK_KV + part * KEYS + i * 4u;
                    if d < V_HEAD_DIM {
                        let at = s_at + i * 4u;
                        let x = vec4<f32>(s_tile[at], s_tile[at + 1u], s_tile[at + 2u], s_tile[at + 3u]);
                        store_out4(out_first + row * params.out_row + d, V_HEAD_DIM - d, x * norm);
                    }
                }
            }
        }
        if stored && part == 0u { store_lse(slot, head, row, exact_total.x, exact_total.y); }
    }
}
