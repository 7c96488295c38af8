// No score function of the caller's.
// Expects: nothing.
// Provides: function_slope.
fn function_slope(s: f32, batch: u32, head: u32, q_pos: u32, kv_pos: u32) -> f32 { return 1.0; }
