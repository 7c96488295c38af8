// From raw products <q_i, k_j> and d_p[i, j] = <d_out_i, v_j>: p[i, j] keep / (1 - p_drop) to the place of the first, and
// the gradient of the product, p (keep / (1 - p_drop) d_p - delta_i) times its score's derivative, to that of the second,
// where p = exp(s[i, j] - lse_i). Exactly 0 where the row does not see the key.
// One workgroup owns one row, whole.
// Expects: THREADS, scores, d_scores, stats, Params, block_begin, block_end, row_at, place_at, pair_gradient, pair_visible, read_seed, kept,
// put_d_biased.
// Provides: softmax_gradient_kernel.
@compute @workgroup_size(THREADS)
fn softmax_gradient_kernel(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let id = flat_id(group);
    if id >= params.workgroups { return; }
    read_seed();
    let at = row_at(id);
    let first = at.batch * params.scores_batch + at.head * params.scores_head + at.row * params.scores_row;
    let begin = block_begin(at.batch, at.row);
    let end = block_end(at.batch, at.row);
    let place = place_at(at);
    let lse = bitcast<f32>(stats[params.stats_base + 2u * id]);
    let delta = bitcast<f32>(stats[params.stats_base + 2u * id + 1u]);
    for (var j = lane; j < params.scores_row; j += THREADS) {
        let i = first + j;
        var weight = 0.0;
        var by_product = 0.0;
        var by_bias = 0.0;
        if j >= begin && j < end && pair_visible(place, at.batch, at.head, at.row, j) {
            let gradient = pair_gradient(scores[params.scores_base + i], place, at.batch, at.head, at.row, j);
            let p = exp(gradient.score - lse);
            let keep = kept(1.0, place, at.batch, at.head, at.row, j);
            let d_s = p * (keep * d_scores[params.d_scores_base + i] - delta);
            weight = p * keep;
            by_product = d_s * gradient.by_product;
            by_bias = d_s * gradient.by_bias;
        }
        scores[params.scores_base + i] = weight;
        d_scores[params.d_scores_base + i] = by_product;
        put_d_biased(i, by_bias);
    }
}
