// Tiles are not classified: of all, some pairs are hidden if PAIRS may be.
// Expects: PAIRS.
// Provides: tile_class.
fn tile_class(batch: u32, head: u32, q_tile: u32, kv_tile: u32) -> u32 { return select(1u, 2u, PAIRS); }
