// Sequences behind one another: a table says of every row which it belongs to.
// Expects: Params, tables.
// Provides: sequence_of.
fn sequence_of(batch: u32, row: u32) -> u32 { return tables[params.tables_base + params.rows_at + row]; }
