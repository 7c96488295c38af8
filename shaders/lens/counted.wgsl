// Lengths count the new rows already: another append has taken them, or has said why not.
// Expects: append_status.
// Provides: counted_rows, earlier_status, grow.

// How many of the new rows a length counts.
fn counted_rows(rows: u32) -> u32 { return rows; }

// What was said of a sequence before.
fn earlier_status(id: u32) -> u32 { return append_status[params.append_status_base + id]; }

fn grow(id: u32, len: u32) {}
