// Dropout by a given mask, keep[b, h, i, j], a byte a pair: anything but 0 keeps the pair.
// Expects: Params, Place, keep.
// Provides: DROPS; read_seed; keeps, of a pair; keeps4, of four neighbouring keys; keep_scale, 1 / (1 - p_drop); kept,
// p * keep / (1 - p_drop).
const DROPS: bool = true;
fn read_seed() {}

fn keeps(place: Place, batch: u32, head: u32, row: u32, key: u32) -> bool {
    let i = params.keep_base + batch * params.keep_batch + head * params.keep_head + row * params.keep_row
          + min(key, params.kv_len - 1u) * params.keep_key;
    return extractBits(keep[i / 4u], i % 4u * 8u, 8u) != 0u;
}

fn keeps4(place: Place, batch: u32, head: u32, row: u32, key: u32) -> vec4<bool> {
    return vec4<bool>(keeps(place, batch, head, row, key), keeps(place, batch, head, row, key + 1u),
                      keeps(place, batch, head, row, key + 2u), keeps(place, batch, head, row, key + 3u));
}

fn keep_scale() -> f32 { return params.keep_scale; }

fn kept(p: f32, place: Place, batch: u32, head: u32, row: u32, key: u32) -> f32 {
    return select(0.0, p * params.keep_scale, keeps(place, batch, head, row, key));
}
