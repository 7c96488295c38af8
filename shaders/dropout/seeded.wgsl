// Dropout by random numbers: p * keep / (1 - p_drop). `row` and `key` count in the block, `place` says where that is: the
// numbers are those of positions in the sequence.
// Expects: PACKED_KEYS, Params, Place, tables, dropout_key, dropout_words.
// Provides: keeps, of a pair; keeps4, of four neighbouring keys from a multiple of 4 on; keep_scale, 1 / (1 - p_drop);
// kept, p * keep / (1 - p_drop).
fn head_key(place: Place, head: u32) -> vec4<u32> {
    let at = params.tables_base + params.seed_at;
    return dropout_key(vec2<u32>(tables[at], tables[at + 1u]), place.batch, params.head_first + head);
}

fn keeps(place: Place, batch: u32, head: u32, row: u32, key: u32) -> bool {
    let kv_pos = params.kv_first + key - place.kv_start;
    let words = dropout_words(head_key(place, head), place.q_pos, kv_pos / 4u);
    return words[kv_pos % 4u] >= params.dropout_threshold;
}

fn keeps4(place: Place, batch: u32, head: u32, row: u32, key: u32) -> vec4<bool> {
    let kv_pos = params.kv_first + key - place.kv_start;
    let at = head_key(place, head);
    var words = dropout_words(at, place.q_pos, kv_pos / 4u);
    // Only packed sequences start where a call's four keys do not: some of them may be before key 0.
    if PACKED_KEYS && kv_pos % 4u != 0u {
        let next = dropout_words(at, place.q_pos, (kv_pos + 4u) / 4u);
        let one = vec4<u32>(words.yzw, next.x);
        let two = vec4<u32>(words.zw, next.xy);
        let three = vec4<u32>(words.w, next.xyz);
        words = select(select(three, two, kv_pos % 4u == 2u), one, kv_pos % 4u == 1u);
    }
    return words >= vec4<u32>(params.dropout_threshold);
}

fn keep_scale() -> f32 { return params.keep_scale; }

fn kept(p: f32, place: Place, batch: u32, head: u32, row: u32, key: u32) -> f32 {
    return select(0.0, p * params.keep_scale, keeps(place, batch, head, row, key));
}
