// w[row, k .. k + 4], 8 bits each, with an f32 factor a row.
// Expects: COLS, w, factors. Provides: range(row, k), code4(row, k), weight4(row, k); a weight is code * range.x + range.y.
fn range(row: u32, k: u32) -> vec2<f32> { return vec2<f32>(factors[row], 0.0); }

fn code4(row: u32, k: u32) -> vec4<f32> { return vec4<f32>(unpack4xI8(w[(row * COLS + k) / 4u])); }

fn weight4(row: u32, k: u32) -> vec4<f32> { return code4(row, k) * factors[row]; }
