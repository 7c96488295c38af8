// The least f16 that is not below a number from 0 on, by its bits: how a device rounds does not matter then. A number
// past f16 becomes the largest.
// Expects: nothing.
// Provides: half_above, as bits; half_value, of such bits.
fn half_above(x: f32) -> u32 {
    let bits = bitcast<u32>(x);
    let normal = (bits - 0x38000000u + 0x1fffu) >> 13u;
    let small = u32(ceil(bitcast<f32>(min(bits, 0x38800000u)) * 16777216.0));   // a multiple of 2^-24
    return min(select(normal, small, bits < 0x38800000u), 0x7bffu);
}
fn half_value(half: u32) -> f32 {
    return select(bitcast<f32>((half << 13u) + 0x38000000u), f32(half) / 16777216.0, half < 0x400u);
}

// The nearest integers, of halves those further from 0.
fn nearest4(x: vec4<f32>) -> vec4<f32> { return sign(x) * floor(abs(x) + 0.5); }
