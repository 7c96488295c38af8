// A word of `operand`.
// Expects: `operand`, replaced by the input's name.
// Provides: operand_at.
fn operand_at(i: u32) -> u32 { return operand[params.operand_base + i]; }
