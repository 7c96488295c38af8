// Gradients by what is added to scores, for those of bias and slopes.
// Expects: Params, d_biased.
// Provides: put_d_biased.
fn put_d_biased(i: u32, x: f32) { d_biased[params.d_biased_base + i] = x; }
