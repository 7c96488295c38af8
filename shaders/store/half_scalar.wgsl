// Stores elements of `operand`, two of a word, at any place; of four, the `width` that the row has left. Another invocation
// may write the other half of a word: each changes its own bits alone, atomically.
// Expects: `operand`, replaced by the tensor's name, as atomics; half_of, an f32's 16 bits.
// Provides: store_operand, store_operand4.
fn store_operand(i: u32, x: f32) {
    let shift = i % 2u * 16u;
    atomicAnd(&operand[i / 2u], 0xffff0000u >> shift);
    atomicOr(&operand[i / 2u], half_of(x) << shift);
}
fn store_operand4(i: u32, width: u32, x: vec4<f32>) {
    store_operand(i, x.x);
    if width > 1u { store_operand(i + 1u, x.y); }
    if width > 2u { store_operand(i + 2u, x.z); }
    if width > 3u { store_operand(i + 3u, x.w); }
}
