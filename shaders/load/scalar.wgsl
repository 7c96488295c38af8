// Elements of `operand` from any place on; those past the `width` (at least 1) that the row has left
// are 0 and not read.
// Expects: `operand`, replaced by the tensor's name.
// Provides: load_operand, load_operand4.
fn load_operand(i: u32) -> f32 { return f32(operand[i]); }
fn load_operand4(i: u32, width: u32) -> vec4<f32> {
    let last = i + width - 1u;
    let x = vec4<f32>(load_operand(i), load_operand(min(i + 1u, last)), load_operand(min(i + 2u, last)),
                      load_operand(min(i + 3u, last)));
    return select(vec4<f32>(), x, vec4<u32>(0u, 1u, 2u, 3u) < vec4<u32>(width));
}
