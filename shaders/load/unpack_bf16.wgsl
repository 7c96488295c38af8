// Two bf16 of a word: upper halves of f32.
// Expects: nothing.
// Provides: unpack_operand.
fn unpack_operand(word: u32) -> vec2<f32> {
    return vec2<f32>(bitcast<f32>(word << 16u), bitcast<f32>(word & 0xffff0000u));
}
