// Four factors of row m, as they lie: 0 past the end.
// Expects: load_a4, Params.
// Provides: fetch_a4.
fn fetch_a4(m: u32, k: u32) -> vec4<f32> {
    if k >= params.terms { return vec4<f32>(); }
    return load_a4(params.a_base + min(m, params.rows - 1u) * params.a_row + k, params.terms - k);
}
