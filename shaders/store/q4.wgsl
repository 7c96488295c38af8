// Stores a block of 32 elements of out: a word with their scale and their minimum as f16, and four words of eight
// numbers from 0 to 15 each.
// Expects: out, Params, half_above, half_value, nearest4.
// Provides: store_block.
fn codes(x: vec4<f32>, y: vec4<f32>, minimum: f32, scale: f32) -> u32 {
    let low = vec4<u32>(clamp(nearest4((x - minimum) / scale), vec4<f32>(0.0), vec4<f32>(15.0)));
    let high = vec4<u32>(clamp(nearest4((y - minimum) / scale), vec4<f32>(0.0), vec4<f32>(15.0)));
    return low.x | low.y << 4u | low.z << 8u | low.w << 12u | high.x << 16u | high.y << 20u | high.z << 24u | high.w << 28u;
}
// The largest f16 that is not above `x`, as bits.
fn half_below(x: f32) -> u32 {
    if x <= 0.0 { return half_above(abs(x)) | 0x8000u; }
    let above = half_above(x);
    return select(above, above - 1u, half_value(above) > x);
}
fn store_block(i: u32, a: vec4<f32>, b: vec4<f32>, c: vec4<f32>, d: vec4<f32>,
               e: vec4<f32>, f: vec4<f32>, g: vec4<f32>, h: vec4<f32>) {
    let largest4 = max(max(max(a, b), max(c, d)), max(max(e, f), max(g, h)));
    let smallest4 = min(min(min(a, b), min(c, d)), min(min(e, f), min(g, h)));
    let largest = max(max(largest4.x, largest4.y), max(largest4.z, largest4.w));
    let smallest = min(min(smallest4.x, smallest4.y), min(smallest4.z, smallest4.w));
    let below = half_below(smallest);
    let size = half_value(below & 0x7fffu);
    let minimum = select(size, -size, below >= 0x8000u);
    let half = half_above(abs(largest - minimum) / 15.0);
    // Where all are the minimum, any scale makes 0 of what they are more.
    let scale = select(1.0, half_value(half), half > 0u);
    let at = params.out_words + i / 32u * 5u;
    out[at] = half | below << 16u;
    out[at + 1u] = codes(a, b, minimum, scale);
    out[at + 2u] = codes(c, d, minimum, scale);
    out[at + 3u] = codes(e, f, minimum, scale);
    out[at + 4u] = codes(g, h, minimum, scale);
}
