// The residual: what is there already is added to.
// Expects: out. Provides: finished(y, at): what is stored.
fn finished(y: f32, at: u32) -> f32 { return out[at] + y; }
