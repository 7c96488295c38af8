// s - slope * |i + diagonal - j|: in integers where that cannot overflow.
// Expects: Params, tables, diagonal.
// Provides: with_alibi.
fn with_alibi(s: f32, batch: u32, head: u32, q_pos: u32, kv_pos: u32) -> f32 {
    let slope = bitcast<f32>(tables[params.tables_base + params.slopes_at + batch * params.slopes_batch + head]);
    let d = diagonal(batch);
    let near = i32(q_pos) - i32(kv_pos);
    let far = d > (1 << 30u) || d < -(1 << 30u);
    let distance = select(f32(abs(near + d)), abs(f32(near) + f32(d)), far);
    return s - slope * distance;
}
