// Pairs (x_i, x_{i + r/2}) turned by their angle at a position: x cos - y sin, y cos + x sin. Elements from r on stay.
// Expects: DIM; ROTARY_HALF = r/2; Params, cos_table, sin_table, load_x.
// Provides: turned4, of elements `i` to `i + 3` of the row that starts at `first`.
fn turned(first: u32, i: u32, pos: u32) -> f32 {
    let x = load_x(first + i);
    if i >= 2u * ROTARY_HALF { return x; }
    let second = i >= ROTARY_HALF;
    let pair = select(i, i - ROTARY_HALF, second);
    let other = load_x(first + select(i + ROTARY_HALF, pair, second));
    let angle = pos * ROTARY_HALF + pair;
    return x * cos_table[params.cos_table_base + angle] + select(-other, other, second) * sin_table[params.sin_table_base + angle];
}
fn turned4(first: u32, i: u32, pos: u32) -> vec4<f32> {
    return vec4<f32>(turned(first, i, pos), turned(first, min(i + 1u, DIM - 1u), pos),
                     turned(first, min(i + 2u, DIM - 1u), pos), turned(first, min(i + 3u, DIM - 1u), pos));
}
