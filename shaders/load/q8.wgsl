// Elements of `operand`, in blocks of 32: a word with their scale as f16, and eight words of four i8 each. For four, `i`
// is a multiple of 4.
// Expects: `operand`, replaced by the tensor's name; Params.
// Provides: load_operand, load_operand4.
fn load_operand4(i: u32, width: u32) -> vec4<f32> {
    let block = params.operand_words + i / 32u * 9u;
    return unpack2x16float(operand[block]).x * vec4<f32>(unpack4xI8(operand[block + 1u + i % 32u / 4u]));
}
fn load_operand(i: u32) -> f32 { return load_operand4(i / 4u * 4u, 4u)[i % 4u]; }
