// Where the first head's row of a position starts in a cache of pages: a table says which page holds which positions.
// Expects: Params, block_table.
// Provides: cache_at.
fn cache_at(batch: u32, pos: u32) -> u32 {
    let entry = params.block_table_base + batch * params.table_row + pos / params.page_len;
    let page = min(block_table[entry], params.last_page);
    return params.out_base + page * params.out_batch + pos % params.page_len * params.out_row;
}
