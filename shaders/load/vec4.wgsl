// Four elements of `operand`, which is bound as vec4: `i` and the row's width are multiples of 4.
// Expects: `operand`, replaced by the tensor's name.
// Provides: load_operand4.
fn load_operand4(i: u32, width: u32) -> vec4<f32> {
    return operand[i / 4u];
}
