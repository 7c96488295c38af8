// Adds b_n to a product.
// Expects: bias, params.bias_base.
// Provides: with_bias.
fn with_bias(c: f32, n: u32) -> f32 { return c + bias[params.bias_base + n]; }
