// The nearest f16, ties to even, as bits: pack2x16float may round toward zero.
// Expects: nothing.
// Provides: half_of.
fn half_of(x: f32) -> u32 {
    let bits = bitcast<u32>(x);
    let size = bits & 0x7fffffffu;
    let normal = min((size - 0x38000000u + 0xfffu + ((size >> 13u) & 1u)) >> 13u, 0x7c00u);
    let small = u32(round(bitcast<f32>(min(size, 0x38800000u)) * 16777216.0));   // a multiple of 2^-24
    let half = select(select(normal, small, size < 0x38800000u), 0x7e00u, size > 0x7f800000u);
    return half | ((bits >> 16u) & 0x8000u);
}
