// A(i) = keys in [i + band_begin, i + band_end): causal and windows. The host clamps both ends to +-2^30,
// and no position is above 2^29, so that no sum overflows.
// Expects: params.band_begin, params.band_end.
// Provides: kv_begin, kv_end: the range of keys that a row sees, before it is clamped to the keys there are.
fn kv_begin(batch: u32, q_pos: u32) -> u32 { return u32(max(i32(q_pos) + params.band_begin, 0)); }
fn kv_end(batch: u32, q_pos: u32) -> u32 { return u32(max(i32(q_pos) + params.band_end, 0)); }
