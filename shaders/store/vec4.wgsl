// Stores four elements of out, which is bound as vec4.
// Expects: out, OutElement.
// Provides: store_out4.
fn store_out4(i: u32, width: u32, x: vec4<f32>) { out[i / 4u] = vec4<OutElement>(x); }
