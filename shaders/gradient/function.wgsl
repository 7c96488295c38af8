// The derivative of the caller's score function.
// Expects: d_score, the caller's; start_loops.
// Provides: function_slope.
fn function_slope(s: f32, batch: u32, head: u32, q_pos: u32, kv_pos: u32) -> f32 {
    start_loops();
    return d_score(s, batch, head, q_pos, kv_pos);
}
