// Stores a block of 32 elements of out: a word with their scale as f16, and eight words of four i8 each.
// Expects: out, Params, half_above, half_value, nearest4.
// Provides: store_block.
fn codes(x: vec4<f32>, scale: f32) -> u32 {
    let codes = vec4<i32>(clamp(nearest4(x / scale), vec4<f32>(-127.0), vec4<f32>(127.0)));
    let bytes = bitcast<vec4<u32>>(codes) & vec4<u32>(255u);
    return bytes.x | bytes.y << 8u | bytes.z << 16u | bytes.w << 24u;
}
fn store_block(i: u32, a: vec4<f32>, b: vec4<f32>, c: vec4<f32>, d: vec4<f32>,
               e: vec4<f32>, f: vec4<f32>, g: vec4<f32>, h: vec4<f32>) {
    let largest4 = max(max(max(abs(a), abs(b)), max(abs(c), abs(d))), max(max(abs(e), abs(f)), max(abs(g), abs(h))));
    let largest = max(max(largest4.x, largest4.y), max(largest4.z, largest4.w));
    let half = half_above(largest / 127.0);
    // Where all are 0, any scale makes 0 of them.
    let scale = select(1.0, half_value(half), half > 0u);
    let at = params.out_words + i / 32u * 9u;
    out[at] = half;
    out[at + 1u] = codes(a, scale);
    out[at + 2u] = codes(b, scale);
    out[at + 3u] = codes(c, scale);
    out[at + 4u] = codes(d, scale);
    out[at + 5u] = codes(e, scale);
    out[at + 6u] = codes(f, scale);
    out[at + 7u] = codes(g, scale);
    out[at + 8u] = codes(h, scale);
}
