// Stores elements of out, two of a word, at any place; of four, the `width` that the row has left. Another invocation
// may write the other half of a word: each changes its own bits alone, atomically.
// Expects: out, as atomics; half_of, an f32's 16 bits.
// Provides: store_out, store_out4.
fn store_out(i: u32, x: f32) {
    let shift = i % 2u * 16u;
    atomicAnd(&out[i / 2u], 0xffff0000u >> shift);
    atomicOr(&out[i / 2u], half_of(x) << shift);
}
fn store_out4(i: u32, width: u32, x: vec4<f32>) {
    store_out(i, x.x);
    if width > 1u { store_out(i + 1u, x.y); }
    if width > 2u { store_out(i + 2u, x.z); }
    if width > 3u { store_out(i + 3u, x.w); }
}
