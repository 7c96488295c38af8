// c[m, n] = sum over k of a[m, k] * b[k, n] (+ c[m, n], where sums come in parts): of y = x w^T, d_x is d_y w, and d_w is
// d_y^T x, where a is read across the rows of d_y.
// One workgroup owns BLOCK_M rows x BLOCK_N columns.
// Expects: b, c, fetch_a4, Invocation, product.
// Provides: Params, linear_gradient_kernel.
struct Params {
    rows: u32, columns: u32, terms: u32, tiles: u32,
    grid_width: u32, workgroup_first: u32, workgroups: u32,
    a_base: u32, a_row: u32, b_base: u32, b_row: u32, c_base: u32, c_row: u32, accumulate: u32,
}

fn fetch_b4(n: u32, k: u32) -> vec4<f32> {
    let column = params.b_base + min(n, params.columns - 1u);
    let last = params.terms - 1u;
    return vec4<f32>(b[column + min(k, last) * params.b_row], b[column + min(k + 1u, last) * params.b_row],
                     b[column + min(k + 2u, last) * params.b_row], b[column + min(k + 3u, last) * params.b_row]);
}

fn start_part(part: u32) {}

fn emit(m: u32, n: u32, sum: f32) {
    let i = params.c_base + m * params.c_row + n;
    if params.accumulate != 0u { c[i] = c[i] + sum; } else { c[i] = sum; }
}

@compute @workgroup_size(THREADS)
fn linear_gradient_kernel(invocation: Invocation) {
    let id = params.workgroup_first + invocation.group.y * params.grid_width + invocation.group.x;
    if id >= params.workgroups { return; }
    product(invocation, id % params.tiles * BLOCK_M, id / params.tiles * BLOCK_N, params.rows, params.columns,
            0u, params.terms, 0u, params.terms, 1u);
}
