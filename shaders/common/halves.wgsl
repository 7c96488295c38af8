// Parts of f32 that f16 holds, by their bits: how a device rounds, and what its compiler makes of x - f32(f16(x)),
// does not matter then.
// Expects: nothing.
// Provides: finite_half, high_half, nearest_half.

// Values that a weight of 0 may meet: what f16 cannot hold, NaN included, is 0.
fn finite_half(x: vec4<f32>) -> vec4<f32> {
    let size = bitcast<vec4<u32>>(x) & vec4<u32>(0x7fffffffu);
    return select(x, vec4<f32>(), size >= vec4<u32>(0x477ff000u));   // from 65520 on
}

// The first 11 bits.
fn high_half(x: vec4<f32>) -> vec4<f32> { return bitcast<vec4<f32>>(bitcast<vec4<u32>>(x) & vec4<u32>(0xffffe000u)); }

// The first 11 bits, rounded: a device may cut them off instead, and weights that are all too small would not cancel.
fn nearest_half(x: vec4<f32>) -> vec4<f32> {
    return bitcast<vec4<f32>>((bitcast<vec4<u32>>(x) + vec4<u32>(0x1000u)) & vec4<u32>(0xffffe000u));
}
