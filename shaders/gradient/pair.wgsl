// The score of a pair, as score/pair.wgsl has it, and its derivatives by what is added to it (a bias, ALiBi) and by the
// raw product.
// Expects: Params, Place, capped, cap_slope, with_alibi, with_bias, function_score, function_slope.
// Provides: PairGradient, pair_gradient.
struct PairGradient { score: f32, by_bias: f32, by_product: f32 }

fn pair_gradient(product: f32, place: Place, batch: u32, head: u32, row: u32, key: u32) -> PairGradient {
    let h = params.head_first + head;
    let kv_pos = params.kv_first + key - place.kv_start;
    let c = capped(product * params.scale);
    let s = with_bias(with_alibi(c, place.batch, h, place.q_pos, kv_pos), batch, head, row, key);
    let by_bias = function_slope(s, place.batch, h, place.q_pos, kv_pos);
    return PairGradient(function_score(s, place.batch, h, place.q_pos, kv_pos), by_bias,
                        by_bias * cap_slope(c) * params.scale);
}
