// Nobody asked for the scores.
// Expects: nothing.
// Provides: KEEP, keep_score.
const KEEP: bool = false;
fn keep_score(product: f32, place: Place, batch: u32, head: u32, row: u32, key: u32) {}
