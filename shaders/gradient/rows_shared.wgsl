// All rows that an element stands for.
// Expects: Params.
// Provides: summed_rows, tensor_batch, of an element's batch entry.
fn summed_rows(batch: u32) -> vec2<u32> { return vec2<u32>(0u, params.sum_rows); }
fn tensor_batch(batch: u32) -> u32 { return batch; }
