// What a workgroup of a kernel of few rows over many keys works on: rows that share a K/V head, heads side by side, and
// one range of keys, or all. Ranges leave partial results, one behind the other (`slot`): they are numbered innermost, so
// that those in use are spread over the device.
// Expects: RANGES, Params, block_begin, block_end.
// Provides: Few, few_rows.
struct Few {
    batch: u32, slot: u32, kv_head: u32, tile: u32,
    heads: u32, last: u32,              // heads that share it; their last row
    begin: u32, end: u32,               // what some row sees of the range
    all_begin: u32, all_end: u32,       // what every row does
}

fn few_rows(flat: u32) -> Few {
    let range = flat % params.ranges;
    let id = flat / params.ranges;
    let batch = id / params.tiles / params.kv_heads;
    let heads = params.heads / params.kv_heads;
    var begin = block_begin(batch, 0u);
    var end = block_end(batch, params.q_len - 1u);
    if RANGES {
        begin = max(begin, range * params.range_keys);
        end = min(end, (range + 1u) * params.range_keys);
    }
    return Few(batch, range * params.batch + batch, id / params.tiles % params.kv_heads, id % params.tiles,
               heads, heads * params.q_len - 1u,
               begin, end, block_begin(batch, params.q_len - 1u), min(block_end(batch, 0u), end));
}
