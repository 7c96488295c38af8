// Two f16 of a word.
// Expects: nothing.
// Provides: unpack_operand.
fn unpack_operand(word: u32) -> vec2<f32> { return unpack2x16float(word); }
