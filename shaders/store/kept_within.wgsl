// Scores after scaling, or after the soft cap, of every pair within the lengths; -inf, as bits, where there is none.
// Expects: kept, KEEP_CAPPED, Params, within, capped.
// Provides: KEEP, keep_score.
const KEEP: bool = true;
fn keep_score(product: f32, place: Place, batch: u32, head: u32, row: u32, key: u32) {
    let keys = within(params.batch_first + batch, params.q_first + row);
    var bits = params.neg_infinity;
    if params.kv_first + key >= keys.x && params.kv_first + key < keys.y {
        let raw = product * params.scale;
        bits = bitcast<u32>(select(raw, capped(raw), KEEP_CAPPED));
    }
    kept[params.kept_base + batch * params.kept_batch + head * params.kept_head + row * params.kept_row + key] = bits;
}
