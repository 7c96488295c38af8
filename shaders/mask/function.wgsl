// The caller's mask function.
// Expects: visible, the caller's; start_loops.
// Provides: function_shows.
fn function_shows(batch: u32, head: u32, q_pos: u32, kv_pos: u32) -> bool {
    start_loops();
    return visible(batch, head, q_pos, kv_pos);
}
