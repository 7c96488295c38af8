// Stores elements of out at any place; of four, the `width` that the row has left.
// Expects: out, OutElement.
// Provides: store_out, store_out4.
fn store_out(i: u32, x: f32) { out[i] = OutElement(x); }
fn store_out4(i: u32, width: u32, x: vec4<f32>) {
    store_out(i, x.x);
    if width > 1u { store_out(i + 1u, x.y); }
    if width > 2u { store_out(i + 2u, x.z); }
    if width > 3u { store_out(i + 3u, x.w); }
}
