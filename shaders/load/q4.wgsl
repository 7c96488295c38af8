// Elements of `operand`, in blocks of 32: a word with their scale and their minimum as f16, and four words of eight
// numbers from 0 to 15 each. For four, `i` is a multiple of 4.
// Expects: `operand`, replaced by the tensor's name; Params.
// Provides: load_operand, load_operand4.
fn load_operand4(i: u32, width: u32) -> vec4<f32> {
    let block = params.operand_words + i / 32u * 5u;
    let range = unpack2x16float(operand[block]);
    let codes = vec4<u32>(operand[block + 1u + i % 32u / 8u] >> (i % 8u * 4u)) >> vec4<u32>(0u, 4u, 8u, 12u);
    return fma(vec4<f32>(range.x), vec4<f32>(codes & vec4<u32>(15u)), vec4<f32>(range.y));
}
fn load_operand(i: u32) -> f32 { return load_operand4(i / 4u * 4u, 4u)[i % 4u]; }
