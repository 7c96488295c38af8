// exp(sink) joins the sum of a row that its sequence has; a sink of -inf, by its bits, does not.
// Expects: Params, tables.
// Provides: with_sink, of the greatest score m and the sum l of a row.
fn with_sink(m: f32, l: f32, head: u32, real: bool) -> vec2<f32> {
    let bits = tables[params.tables_base + params.sinks_at + params.head_first + head];
    if bits == params.neg_infinity || !real { return vec2<f32>(m, l); }
    let sink = bitcast<f32>(bits);
    let larger = max(m, sink);
    return vec2<f32>(larger, l * exp(m - larger) + exp(sink - larger));
}
