// w[row, k .. k + 4], 8 bits each, in blocks of 32 along a row that share a scale and a minimum, which are f16.
// Expects: COLS, w, ranges. Provides: range(row, k), code4(row, k), weight4(row, k); a weight is code * range.x + range.y.
fn range(row: u32, k: u32) -> vec2<f32> { return unpack2x16float(ranges[(row * COLS + k) / 32u]); }

fn code4(row: u32, k: u32) -> vec4<f32> { return vec4<f32>(unpack4xI8(w[(row * COLS + k) / 4u])); }

fn weight4(row: u32, k: u32) -> vec4<f32> {
    let shared_by_32 = range(row, k);
    return fma(code4(row, k), vec4<f32>(shared_by_32.x), vec4<f32>(shared_by_32.y));
}
