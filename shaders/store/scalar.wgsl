// Stores elements of `operand` at any place; of four, the `width` that the row has left.
// Expects: `operand`, replaced by the tensor's name; OutElement.
// Provides: store_operand, store_operand4.
fn store_operand(i: u32, x: f32) { operand[i] = OutElement(x); }
fn store_operand4(i: u32, width: u32, x: vec4<f32>) {
    store_operand(i, x.x);
    if width > 1u { store_operand(i + 1u, x.y); }
    if width > 2u { store_operand(i + 2u, x.z); }
    if width > 3u { store_operand(i + 3u, x.w); }
}
