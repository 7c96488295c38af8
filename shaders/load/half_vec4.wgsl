// Elements of `operand`, bound as pairs of words of two: for four, `i` and the row's width are multiples of 4.
// Expects: `operand`, replaced by the tensor's name; unpack_operand.
// Provides: load_operand, load_operand4.
fn load_operand(i: u32) -> f32 {
    let pair = unpack_operand(operand[i / 4u][i / 2u % 2u]);
    return select(pair.x, pair.y, i % 2u == 1u);
}
fn load_operand4(i: u32, width: u32) -> vec4<f32> {
    let words = operand[i / 4u];
    return vec4<f32>(unpack_operand(words.x), unpack_operand(words.y));
}
