// An f16 of the bias, as bits of an f32; -inf, which unpacking may not keep, by its bits.
// Expects: bias.
// Provides: bias_bits.
fn bias_bits(i: u32) -> u32 {
    let half = (bias[i / 2u] >> (i % 2u * 16u)) & 0xffffu;
    return select(bitcast<u32>(unpack2x16float(half).x), 0xff800000u, half == 0xfc00u);
}
