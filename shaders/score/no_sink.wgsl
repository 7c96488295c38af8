// No sink.
// Expects: nothing.
// Provides: with_sink, of the greatest score m and the sum l of a row.
fn with_sink(m: f32, l: f32, head: u32, real: bool) -> vec2<f32> { return vec2<f32>(m, l); }
