// A bf16 of the bias, as bits of an f32.
// Expects: bias.
// Provides: bias_bits.
fn bias_bits(i: u32) -> u32 { return (bias[i / 2u] >> (i % 2u * 16u)) << 16u; }
