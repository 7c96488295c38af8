// An f32 of the bias, as bits.
// Expects: bias.
// Provides: bias_bits.
fn bias_bits(i: u32) -> u32 { return bias[i]; }
