// Stores four elements of out, bound as pairs of words of two.
// Expects: out; half_of, an f32's 16 bits.
// Provides: store_out4.
fn store_out4(i: u32, width: u32, x: vec4<f32>) {
    out[i / 4u] = vec2<u32>(half_of(x.x) | half_of(x.y) << 16u, half_of(x.z) | half_of(x.w) << 16u);
}
