// Dropout by random numbers: p * keep / (1 - p_drop). `row` and `key` count in the block, `place` says where that is: the
// numbers are those of positions in the sequence.
// Expects: PACKED_KEYS, Params, Place, tables, dropout_key, dropout_words.
// Provides: DROPS; read_seed, which comes first; keeps, of a pair; keeps4, of four neighbouring keys from a multiple of 4
// on; keep_scale, 1 / (1 - p_drop); kept, p * keep / (1 - p_drop).
const DROPS: bool = true;
// Read once: a software GPU's compiler makes a loop over invocations of every read.
var<private> dropout_seed: vec2<u32>;
fn read_seed() {
    let at = params.tables_base + params.seed_at;
    dropout_seed = vec2<u32>(tables[at], tables[at + 1u]);
}

fn head_key(place: Place, head: u32) -> vec4<u32> {
    return dropout_key(dropout_seed, place.batch, params.head_first + head);
}

fn keeps(place: Place, batch: u32, head: u32, row: u32, key: u32) -> bool {
    let kv_pos = params.kv_first + key - place.kv_start;
    let words = dropout_words(head_key(place, head), place.q_pos, kv_pos / 4u);
    return words[kv_pos % 4u] >= params.dropout_threshold;
}

// A bit for each of the keys that share a call with `kv_pos`.
fn kept_bits(at: vec4<u32>, q_pos: u32, kv_pos: u32) -> u32 {
    let keeps = dropout_words(at, q_pos, kv_pos / 4u) >= vec4<u32>(params.dropout_threshold);
    return dot(select(vec4<u32>(), vec4<u32>(1u, 2u, 4u, 8u), keeps), vec4<u32>(1u));
}

fn keeps4(place: Place, batch: u32, head: u32, row: u32, key: u32) -> vec4<bool> {
    let kv_pos = params.kv_first + key - place.kv_start;
    let at = head_key(place, head);
    if PACKED_KEYS {
        // A sequence may start in the middle of four keys, and some of them be before its key 0.
        let bits = kept_bits(at, place.q_pos, kv_pos) | (kept_bits(at, place.q_pos, kv_pos + 4u) << 4u);
        return (vec4<u32>(bits >> (kv_pos % 4u)) & vec4<u32>(1u, 2u, 4u, 8u)) != vec4<u32>();
    }
    return dropout_words(at, place.q_pos, kv_pos / 4u) >= vec4<u32>(params.dropout_threshold);
}

fn keep_scale() -> f32 { return params.keep_scale; }

fn kept(p: f32, place: Place, batch: u32, head: u32, row: u32, key: u32) -> f32 {
    return select(0.0, p * params.keep_scale, keeps(place, batch, head, row, key));
}
