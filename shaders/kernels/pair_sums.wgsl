// d[b, h, i, j] = sum over the axes that it shares of what each pair adds (+ d, where these come in parts): the gradient of a
// bias, or of slopes.
// One workgroup owns one element where keys are summed over (KEYS_SHARED), else as many as it has invocations.
// Expects: THREADS, KEYS_SHARED, d_biased, sums, Params, place_of, summand, summed_rows, tensor_batch.
// Provides: pair_sums_kernel.
var<workgroup> lane_sums: array<f32, THREADS>;

// Of one key of the element, or of those that the invocation owns.
fn row_sum(batch: u32, head: u32, row: u32, key: u32, lane: u32) -> f32 {
    let first = params.d_biased_base + batch * params.scores_batch + head * params.scores_head + row * params.scores_row;
    let place = place_of(params.batch_first + batch, params.q_first + row);
    if !KEYS_SHARED { return summand(d_biased[first + key], place, key); }
    var sum = 0.0;
    for (var j = lane; j < params.kv_len; j += THREADS) { sum += summand(d_biased[first + j], place, j); }
    return sum;
}

@compute @workgroup_size(THREADS)
fn pair_sums_kernel(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let id = flat_id(group);
    if id >= params.workgroups { return; }
    let keys = select(params.kv_len, 1u, KEYS_SHARED);
    let rows = params.q_len / params.sum_rows;
    let heads = params.heads / params.sum_heads;
    let element = select(id * THREADS + lane, id, KEYS_SHARED);
    let key = element % keys;
    let row = element / keys % rows;
    let head = element / keys / rows % heads;
    let batch = element / keys / rows / heads;
    let exists = element < params.elements;
    var sum = 0.0;
    if exists {
        let range = summed_rows(batch);
        for (var b = 0u; b < params.sum_batch; b++) {
            for (var h = 0u; h < params.sum_heads; h++) {
                var of_head = 0.0;
                for (var r = range.x; r < range.y; r++) {
                    of_head += row_sum(tensor_batch(batch) + b, head + h, row + r, key, lane);
                }
                sum += of_head;
            }
        }
    }
    if KEYS_SHARED {
        lane_sums[lane] = sum;
        workgroupBarrier();
        for (var half = THREADS / 2u; half > 0u; half /= 2u) {
            if lane < half { lane_sums[lane] += lane_sums[lane + half]; }
            workgroupBarrier();
        }
        sum = lane_sums[0];
    }
    if exists && (!KEYS_SHARED || lane == 0u) {
        let i = params.sums_base + batch * params.sums_batch + head * params.sums_head + row * params.sums_row
              + key * params.sums_key;
        if params.accumulate != 0u { sum += sums[i]; }
        sums[i] = sum;
    }
}
