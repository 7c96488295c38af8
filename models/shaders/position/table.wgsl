// Row i of a sequence stands at position start[0] + i; one past the table stands at its last.
// Expects: COLS, positions, start. Provides: position4(row, column).
fn position4(row: u32, column: u32) -> vec4<f32> {
    let position = min(min(start[0], params.positions - 1u) + row % params.seq_len, params.positions - 1u);
    return positions[(position * COLS + column) / 4u];
}
