// Elements of `operand`, which is bound as vec4: for four, `i` and the row's width are multiples of 4.
// Expects: `operand`, replaced by the tensor's name.
// Provides: load_operand, load_operand4.
fn load_operand(i: u32) -> f32 { return f32(operand[i / 4u][i % 4u]); }
fn load_operand4(i: u32, width: u32) -> vec4<f32> { return vec4<f32>(operand[i / 4u]); }
