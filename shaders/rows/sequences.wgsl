// A sequence a batch entry.
// Expects: nothing.
// Provides: sequence_of.
fn sequence_of(batch: u32, row: u32) -> u32 { return batch; }
