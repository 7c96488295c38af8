// Stores four elements of `operand`, which is bound as vec4.
// Expects: `operand`, replaced by the tensor's name; OutElement.
// Provides: store_operand4.
fn store_operand4(i: u32, width: u32, x: vec4<f32>) { operand[i / 4u] = vec4<OutElement>(x); }
