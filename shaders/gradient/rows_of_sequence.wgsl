// The rows of one of the sequences behind one another, as far as the block has them.
// Expects: Params, record.
// Provides: summed_rows, tensor_batch, of an element's batch entry.
fn summed_rows(batch: u32) -> vec2<u32> {
    let ends = vec2<u32>(record(batch, 0u), record(batch, 0u) + record(batch, 1u));
    return clamp(ends, vec2<u32>(params.q_first), vec2<u32>(params.q_first + params.q_len)) - vec2<u32>(params.q_first);
}
fn tensor_batch(batch: u32) -> u32 { return 0u; }
