// The caller's score function.
// Expects: score, the caller's; start_loops.
// Provides: function_score.
fn function_score(s: f32, batch: u32, head: u32, q_pos: u32, kv_pos: u32) -> f32 {
    start_loops();
    return max(score(s, batch, head, q_pos, kv_pos), LOWEST);
}
