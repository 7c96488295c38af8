// Pairs (x_{2i}, x_{2i + 1}) turned by their angle at a position: x cos - y sin, y cos + x sin. Elements from r on stay.
// Expects: DIM; ROTARY_HALF = r/2; Params, cos_table, sin_table, load_x4.
// Provides: turned4, of elements `i` to `i + 3` of the row that starts at `first`; `i` is even.
fn turned4(first: u32, i: u32, pos: u32) -> vec4<f32> {
    let x = load_x4(first + i, DIM - i);
    let pairs = pos * ROTARY_HALF;
    // Where the last of two pairs is beyond r, any angle will do.
    let a = pairs + min(i / 2u, ROTARY_HALF - 1u);
    let b = pairs + min(i / 2u + 1u, ROTARY_HALF - 1u);
    let cosines = vec2<f32>(cos_table[params.cos_table_base + a], cos_table[params.cos_table_base + b]).xxyy;
    let sines = vec2<f32>(sin_table[params.sin_table_base + a], sin_table[params.sin_table_base + b]).xxyy;
    let turned = x * cosines + vec4<f32>(-x.y, x.x, -x.w, x.z) * sines;
    let at = vec4<u32>(i) + vec4<u32>(0u, 1u, 2u, 3u);
    return select(x, turned, at < vec4<u32>(2u * ROTARY_HALF));
}
