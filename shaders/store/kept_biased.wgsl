// Scores after biases and masks; -inf, as bits, where there is none.
// Expects: kept, Params, block_begin, block_end, pair_visible, pair_score.
// Provides: KEEP, keep_score.
const KEEP: bool = true;
fn keep_score(product: f32, place: Place, batch: u32, head: u32, row: u32, key: u32) {
    var bits = params.neg_infinity;
    if key >= block_begin(batch, row) && key < block_end(batch, row) && pair_visible(place, batch, head, row, key) {
        bits = bitcast<u32>(pair_score(product, place, batch, head, row, key));
    }
    kept[params.kept_base + batch * params.kept_batch + head * params.kept_head + row * params.kept_row + key] = bits;
}
