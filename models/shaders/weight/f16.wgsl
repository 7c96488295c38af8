// w[row, k .. k + 4], stored in 16 bits.
// Expects: COLS, w. Provides: range(row, k), code4(row, k), weight4(row, k); a weight is code * range.x + range.y.
fn range(row: u32, k: u32) -> vec2<f32> { return vec2<f32>(1.0, 0.0); }

fn code4(row: u32, k: u32) -> vec4<f32> {
    let halves = w[(row * COLS + k) / 4u];
    return vec4<f32>(unpack2x16float(halves.x), unpack2x16float(halves.y));
}

fn weight4(row: u32, k: u32) -> vec4<f32> { return code4(row, k); }
