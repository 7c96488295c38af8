// `operand` is not given.
// Expects: nothing.
// Provides: operand_at.
fn operand_at(i: u32) -> u32 { return 0u; }
