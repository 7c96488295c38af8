// No mask function of the caller's.
// Expects: nothing.
// Provides: function_shows.
fn function_shows(batch: u32, head: u32, q_pos: u32, kv_pos: u32) -> bool { return true; }
