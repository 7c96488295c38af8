//! Inputs that are as good as any.

/// Values between -`scale` and `scale`, the same at every run.
pub(crate) fn noise(seed: u32, scale: f32, len: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9);
    std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        scale * ((state >> 8) as f32 / 8_388_608.0 - 1.0)
    })
    .take(len)
    .collect()
}
