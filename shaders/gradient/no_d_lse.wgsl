// Nothing depends on the lse.
// Expects: nothing.
// Provides: d_lse_of.
fn d_lse_of(row: u32) -> f32 { return 0.0; }
