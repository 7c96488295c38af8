// The gradient of a row's lse.
// Expects: Params, d_lse.
// Provides: d_lse_of.
fn d_lse_of(row: u32) -> f32 { return d_lse[params.d_lse_base + row]; }
