// m and l of a partial result apart, as bits: a log-sum-exp would lose ln l beside a large m. Of a row that saw no key, -inf.
// Expects: lse, params.neg_infinity.
// Provides: store_lse.
fn store_lse(batch: u32, head: u32, row: u32, m: f32, l: f32) {
    let i = params.lse_base + batch * params.lse_batch + head * params.lse_head + 2u * row;
    lse[i] = select(params.neg_infinity, bitcast<u32>(m), l > 0.0);
    lse[i + 1u] = bitcast<u32>(l);
}
