// Stores up to four elements of out at any place: the `width` that the row has left.
// Expects: out.
// Provides: store_out4.
fn store_out4(i: u32, width: u32, x: vec4<f32>) {
    out[i] = x.x;
    if width > 1u { out[i + 1u] = x.y; }
    if width > 2u { out[i + 2u] = x.z; }
    if width > 3u { out[i + 3u] = x.w; }
}
