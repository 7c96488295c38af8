// A row stands where its position says; one past the table stands at its last.
// Expects: COLS, places, positions. Provides: position4(row, column).
fn position4(row: u32, column: u32) -> vec4<f32> {
    let position = min(positions[row], arrayLength(&places) * 4u / COLS - 1u);
    return places[(position * COLS + column) / 4u];
}
