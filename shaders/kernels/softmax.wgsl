// p[i, j] = exp(s[i, j] - m_i) / l_i in place, lse_i = m_i + ln l_i, where s is the pair's score of the raw product.
// One workgroup owns one row. Exactly 0 goes where the row sees no key: everywhere if WHOLE_ROWS, else where
// the third stage, which takes BLOCK_M rows and CHUNK keys at a time, looks. An invocation owns every THREADS-th key of
// the sequence, in all loops and wherever the sequence lies: sums are the same beside other sequences.
// Expects: THREADS, BLOCK_M, CHUNK, WHOLE_ROWS, scores, Params, block_begin, block_end, row_at, place_at, pair_score, pair_visible,
// with_sink, KEEP, keep_score, store_lse.
// Provides: softmax_kernel.
var<workgroup> lane_m: array<f32, THREADS>;
var<workgroup> lane_l: array<f32, THREADS>;

// The first key from `begin` on that the invocation owns, where the sequence starts at key `origin`, or would.
fn first_of(lane: u32, begin: u32, origin: u32) -> u32 {
    return begin + (lane + THREADS - (begin - origin) % THREADS) % THREADS;
}

@compute @workgroup_size(THREADS)
fn softmax_kernel(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let id = flat_id(group);
    if id >= params.workgroups { return; }
    let at = row_at(id);
    let batch = at.batch;
    let head = at.head;
    let row = at.row;
    let first = params.scores_base + batch * params.scores_batch + head * params.scores_head + row * params.scores_row;
    let begin = block_begin(batch, row);
    let end = block_end(batch, row);
    let place = place_at(at);

    if KEEP {
        for (var j = first_of(lane, 0u, place.kv_start); j < params.kv_len; j += THREADS) {
            keep_score(scores[first + j], place, batch, head, row, j);
        }
    }
    var m = LOWEST;
    var l = 0.0;
    for (var j = first_of(lane, begin, place.kv_start); j < end; j += THREADS) {
        if pair_visible(place, batch, head, row, j) {
            // Kept, so that both loops have the same bits.
            let s = pair_score(scores[first + j], place, batch, head, row, j);
            scores[first + j] = s;
            let larger = max(m, s);
            l = l * exp(m - larger) + exp(s - larger);
            m = larger;
        }
    }
    lane_m[lane] = m;
    lane_l[lane] = l;
    workgroupBarrier();
    for (var half = THREADS / 2u; half > 0u; half /= 2u) {
        if lane < half {
            let other = lane_m[lane + half];
            let larger = max(lane_m[lane], other);
            lane_l[lane] = lane_l[lane] * exp(lane_m[lane] - larger) + lane_l[lane + half] * exp(other - larger);
            lane_m[lane] = larger;
        }
        workgroupBarrier();
    }
    let sum = with_sink(lane_m[0], lane_l[0], head, place.real);
    m = sum.x;
    l = sum.y;

    let tile = row / BLOCK_M * BLOCK_M;
    let zero_begin = select(block_begin(batch, tile) / CHUNK * CHUNK, 0u, WHOLE_ROWS);
    let tile_end = block_end(batch, min(tile + BLOCK_M, params.q_len) - 1u);
    let padded = (params.kv_len + 3u) / 4u * 4u;
    let zero_end = select(min((tile_end + CHUNK - 1u) / CHUNK * CHUNK, padded), params.kv_len, WHOLE_ROWS);
    let norm = select(0.0, 1.0 / l, l > 0.0);
    for (var j = first_of(lane, zero_begin, place.kv_start); j < zero_end; j += THREADS) {
        var p = 0.0;
        if j >= begin && j < end && pair_visible(place, batch, head, row, j) {
            p = exp(scores[first + j] - m) * norm;
        }
        scores[first + j] = p;
    }
    if lane == 0u { store_lse(batch, head, row, m, l); }
}
