// Stores an element of out, or adds it to what is there, where the keys come in ranges.
// Expects: out as f32, params.accumulate.
// Provides: put_out.
fn put_out(i: u32, x: f32) {
    if params.accumulate != 0u { out[i] = out[i] + x; } else { out[i] = x; }
}
