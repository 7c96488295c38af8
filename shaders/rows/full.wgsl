// A(i) = every key.
// Expects: Params, Place.
// Provides: seen: the range of rows of k that a row of q sees, before it is clamped to those that there are;
// within: the same by length alone; place_of; diagonal.
fn seen(batch: u32, row: u32) -> vec2<u32> { return vec2<u32>(0u, 0xffffffffu); }
fn within(batch: u32, row: u32) -> vec2<u32> { return vec2<u32>(0u, 0xffffffffu); }
fn place_of(batch: u32, row: u32) -> Place { return Place(batch, row, 0u, true); }
fn diagonal(batch: u32) -> i32 { return params.diagonal; }
