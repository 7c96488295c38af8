// Rows of k and v, of one sequence after the other.
// Expects: Params.
// Provides: k_head_at, v_head_at: where the rows of a head start; k_at, v_at: where its row `key + ahead` starts, or,
// if there may be none (`edge`), another row.
fn k_head_at(batch: u32, kv_head: u32) -> u32 { return params.k_base + batch * params.k_batch + kv_head * params.k_head; }
fn v_head_at(batch: u32, kv_head: u32) -> u32 { return params.v_base + batch * params.v_batch + kv_head * params.v_head; }
fn k_at(first: u32, batch: u32, key: u32, ahead: u32, edge: bool) -> u32 {
    var at = key * params.k_row + ahead * params.k_row;
    if edge { at = min(at, (params.kv_len - 1u) * params.k_row); }
    return first + at;
}
fn v_at(first: u32, batch: u32, key: u32, ahead: u32, edge: bool) -> u32 {
    var at = key * params.v_row + ahead * params.v_row;
    if edge { at = min(at, (params.kv_len - 1u) * params.v_row); }
    return first + at;
}
