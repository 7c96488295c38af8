// Four factors of column m, one below the other: 0 past the end.
// Expects: load_a, Params.
// Provides: fetch_a4.
fn fetch_a4(m: u32, k: u32) -> vec4<f32> {
    let column = params.a_base + min(m, params.rows - 1u);
    let last = params.terms - 1u;
    let a = vec4<f32>(load_a(column + min(k, last) * params.a_row), load_a(column + min(k + 1u, last) * params.a_row),
                      load_a(column + min(k + 2u, last) * params.a_row), load_a(column + min(k + 3u, last) * params.a_row));
    return select(vec4<f32>(), a, vec4<u32>(k) + vec4<u32>(0u, 1u, 2u, 3u) <= vec4<u32>(last));
}
