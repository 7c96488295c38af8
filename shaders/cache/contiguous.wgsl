// Where the first head's row of a position starts in a cache of one sequence after the other.
// Expects: Params.
// Provides: cache_at.
fn cache_at(batch: u32, pos: u32) -> u32 {
    return params.out_base + batch * params.out_batch + (pos - params.pos_first) * params.out_row;
}
