// s = bias(alibi(cap(scale * <q, k>))), then the caller's own function; and whether the pair is hidden, its place in
// the band and in the lengths apart. `row` and `key` count in the block, `place` says where that is.
// Expects: Params, Place, capped, with_alibi, with_bias, bias_shows, mask_shows, function_score, function_shows.
// Provides: pair_score, pair_visible.
fn pair_score(product: f32, place: Place, batch: u32, head: u32, row: u32, key: u32) -> f32 {
    let h = params.head_first + head;
    let kv_pos = params.kv_first + key - place.kv_start;
    let s = with_alibi(capped(product * params.scale), place.batch, h, place.q_pos, kv_pos);
    return function_score(with_bias(s, batch, head, row, key), place.batch, h, place.q_pos, kv_pos);
}

fn pair_visible(place: Place, batch: u32, head: u32, row: u32, key: u32) -> bool {
    if !mask_shows(batch, head, row, key) || !bias_shows(batch, head, row, key) { return false; }
    let kv_pos = params.kv_first + key - place.kv_start;
    return function_shows(place.batch, params.head_first + head, place.q_pos, kv_pos);
}
