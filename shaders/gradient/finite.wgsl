// What is multiplied by weights that are 0 where a pair is excluded: anything may be there, and is 0 if it is no number.
// Rows that see it have its NaN from their scores.
// Expects: nothing.
// Provides: finite.
fn finite(x: vec4<f32>) -> vec4<f32> {
    let exponent = bitcast<vec4<u32>>(x) & vec4<u32>(0x7f800000u);
    return select(x, vec4<f32>(), exponent == vec4<u32>(0x7f800000u));
}
