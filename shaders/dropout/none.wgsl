// No dropout: every weight is kept as it is.
// Expects: Place.
// Provides: DROPS, read_seed, keeps, keeps4, keep_scale, kept.
const DROPS: bool = false;
fn read_seed() {}
fn keeps(place: Place, batch: u32, head: u32, row: u32, key: u32) -> bool { return true; }
fn keeps4(place: Place, batch: u32, head: u32, row: u32, key: u32) -> vec4<bool> { return vec4<bool>(true); }
fn keep_scale() -> f32 { return 1.0; }
fn kept(p: f32, place: Place, batch: u32, head: u32, row: u32, key: u32) -> f32 { return p; }
