// Stores four elements of `operand`, bound as pairs of words of two.
// Expects: `operand`, replaced by the tensor's name; half_of, an f32's 16 bits.
// Provides: store_operand4.
fn store_operand4(i: u32, width: u32, x: vec4<f32>) {
    operand[i / 4u] = vec2<u32>(half_of(x.x) | half_of(x.y) << 16u, half_of(x.z) | half_of(x.w) << 16u);
}
