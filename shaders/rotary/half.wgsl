// Pairs (x_i, x_{i + r/2}) turned by their angle at a position: x cos - y sin, y cos + x sin. Elements from r on stay.
// Expects: DIM; ROTARY_HALF = r/2, a multiple of 4; Params, cos_table, sin_table, load_x4.
// Provides: turned4, of elements `i` to `i + 3` of the row that starts at `first`; `i` is a multiple of 4.
const_assert ROTARY_HALF % 4u == 0u;

fn turned4(first: u32, i: u32, pos: u32) -> vec4<f32> {
    let x = load_x4(first + i, DIM - i);
    if i >= 2u * ROTARY_HALF { return x; }
    let second = i >= ROTARY_HALF;
    let pair = select(i, i - ROTARY_HALF, second);
    let other = load_x4(first + select(i + ROTARY_HALF, pair, second), 4u);
    let c = params.cos_table_base + pos * ROTARY_HALF + pair;
    let s = params.sin_table_base + pos * ROTARY_HALF + pair;
    let cosines = vec4<f32>(cos_table[c], cos_table[c + 1u], cos_table[c + 2u], cos_table[c + 3u]);
    let sines = vec4<f32>(sin_table[s], sin_table[s + 1u], sin_table[s + 2u], sin_table[s + 3u]);
    return x * cosines + select(-other, other, second) * sines;
}
