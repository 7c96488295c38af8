// lse = m + ln l, as bits: -inf, which WGSL cannot spell, where the row saw no key.
// Expects: lse, params.neg_infinity.
// Provides: store_lse.
fn store_lse(batch: u32, head: u32, row: u32, m: f32, l: f32) {
    let bits = select(params.neg_infinity, bitcast<u32>(m + log(l)), l > 0.0);
    lse[params.lse_base + batch * params.lse_batch + head * params.lse_head + row] = bits;
}
