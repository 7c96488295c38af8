// Elements of `operand`, two of a word, from any place on; those past the `width` (at least 1) that the row has
// left are 0, and no word past theirs is read.
// Expects: `operand`, replaced by the tensor's name; unpack_operand.
// Provides: load_operand, load_operand4.
fn load_operand(i: u32) -> f32 {
    let pair = unpack_operand(operand[i / 2u]);
    return select(pair.x, pair.y, i % 2u == 1u);
}
fn load_operand4(i: u32, width: u32) -> vec4<f32> {
    let word = i / 2u;
    let last = (i + width - 1u) / 2u;
    let a = unpack_operand(operand[word]);
    let b = unpack_operand(operand[min(word + 1u, last)]);
    let c = unpack_operand(operand[min(word + 2u, last)]);
    let x = select(vec4<f32>(a, b), vec4<f32>(a.y, b, c.x), i % 2u == 1u);
    return select(vec4<f32>(), x, vec4<u32>(0u, 1u, 2u, 3u) < vec4<u32>(width));
}
