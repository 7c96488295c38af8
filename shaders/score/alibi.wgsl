// s - slope * |i + diagonal - j|: in integers where that cannot overflow. Below the lowest number it is that.
// Expects: Params, tables, diagonal.
// Provides: with_alibi.
fn with_alibi(s: f32, batch: u32, head: u32, q_pos: u32, kv_pos: u32) -> f32 {
    let slope = bitcast<f32>(tables[params.tables_base + params.slopes_at + batch * params.slopes_batch + head]);
    let d = diagonal(batch);
    let near = clamp(d, -(1 << 30u), 1 << 30u);
    let distance = abs(f32(i32(q_pos) - i32(kv_pos) + near) + f32(d - near));
    return max(s - slope * distance, LOWEST);
}
