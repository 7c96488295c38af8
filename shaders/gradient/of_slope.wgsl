// What a pair adds to the gradient of a slope: -|i + diagonal - j| times that of the score. The distance is as in
// score/alibi.wgsl.
// Expects: Params, Place, diagonal.
// Provides: summand.
fn summand(x: f32, place: Place, key: u32) -> f32 {
    let d = diagonal(place.batch);
    let near = clamp(d, -(1 << 30u), 1 << 30u);
    let kv_pos = params.kv_first + key - place.kv_start;
    return -x * abs(f32(i32(place.q_pos) - i32(kv_pos) + near) + f32(d - near));
}
