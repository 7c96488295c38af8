// Provides: with_bias(sum, n).
fn with_bias(sum: f32, n: u32) -> f32 { return sum; }
