// 0: no pair of the tile is visible; 1: all in the band are; 2: some.
// Expects: Params, tables.
// Provides: tile_class.
fn tile_class(batch: u32, head: u32, q_tile: u32, kv_tile: u32) -> u32 {
    return tables[params.tables_base + params.classes_at + batch * params.classes_batch
                  + head * params.classes_head + q_tile * params.classes_row + kv_tile];
}
