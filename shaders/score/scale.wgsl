// s = scale * <q, k>
// Expects: params.scale.
// Provides: score, of a raw product at global positions.
fn score(product: f32, batch: u32, head: u32, q_pos: u32, kv_pos: u32) -> f32 {
    return product * params.scale;
}
