// Stores an element of out.
// Expects: store_out.
// Provides: put_out.
fn put_out(i: u32, x: f32) { store_out(i, x); }
