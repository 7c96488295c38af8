// s + bias[b, h, i, j], in which -inf, by its bits, hides the pair and is not added: no arithmetic with infinity.
// A sum below the lowest number is the lowest.
// Expects: Params, bias_bits, of an element, as f32.
// Provides: with_bias, bias_shows.
fn bias_of(batch: u32, head: u32, row: u32, key: u32) -> u32 {
    return bias_bits(params.bias_base + batch * params.bias_batch + head * params.bias_head + row * params.bias_row
                     + min(key, params.kv_len - 1u) * params.bias_key);
}

fn with_bias(s: f32, batch: u32, head: u32, row: u32, key: u32) -> f32 {
    let bits = bias_of(batch, head, row, key);
    return max(s + bitcast<f32>(select(bits, 0u, bits == 0xff800000u)), LOWEST);
}

fn bias_shows(batch: u32, head: u32, row: u32, key: u32) -> bool {
    return bias_of(batch, head, row, key) != 0xff800000u;
}
