// Rows as they are.
// Expects: DIM, load_x4.
// Provides: turned4.
fn turned4(first: u32, i: u32, pos: u32) -> vec4<f32> { return load_x4(first + i, DIM - i); }
