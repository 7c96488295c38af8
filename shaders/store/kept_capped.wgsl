// Scores after the soft cap, of every pair within the lengths; -inf, as bits, where there is none.
// Expects: kept, Params, within, capped.
// Provides: KEEP, keep_score.
const KEEP: bool = true;
fn key_within(batch: u32, row: u32, key: u32) -> bool {
    let keys = within(params.batch_first + batch, params.q_first + row);
    return params.kv_first + key >= keys.x && params.kv_first + key < keys.y;
}
fn keep_score(product: f32, place: Place, batch: u32, head: u32, row: u32, key: u32) {
    var bits = params.neg_infinity;
    if key_within(batch, row, key) {
        bits = bitcast<u32>(capped(product * params.scale));
    }
    kept[params.kept_base + batch * params.kept_batch + head * params.kept_head + row * params.kept_row + key] = bits;
}
