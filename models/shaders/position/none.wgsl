// Provides: position4(row, column).
fn position4(row: u32, column: u32) -> vec4<f32> { return vec4<f32>(); }
