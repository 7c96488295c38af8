// Rows of k and v in pages of a pool: a table says, for every sequence, which page holds which positions.
// Expects: PAGE_LEN, Params, tables.
// Provides: k_head_at, v_head_at: where the rows of a head start in page 0; k_at, v_at: where its row `key + ahead`
// starts, or, if there may be none (`edge`), another row.
fn k_head_at(batch: u32, kv_head: u32) -> u32 { return params.k_base + kv_head * params.k_head; }
fn v_head_at(batch: u32, kv_head: u32) -> u32 { return params.v_base + kv_head * params.v_head; }

// The page of a position, and the place in it.
fn page_of(batch: u32, key: u32) -> vec2<u32> {
    let pos = params.kv_first + min(key, params.kv_len - 1u);
    let entry = (params.batch_first + batch) * params.pages_row + pos / PAGE_LEN;
    return vec2<u32>(tables[params.tables_base + params.pages_at + entry], pos % PAGE_LEN);
}

fn k_at(first: u32, batch: u32, key: u32, ahead: u32, edge: bool) -> u32 {
    let at = page_of(batch, key + ahead);
    return first + at.x * params.k_batch + at.y * params.k_row;
}
fn v_at(first: u32, batch: u32, key: u32, ahead: u32, edge: bool) -> u32 {
    let at = page_of(batch, key + ahead);
    return first + at.x * params.v_batch + at.y * params.v_row;
}
