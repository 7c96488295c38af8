// y[m, n] = sum over k of x[m, k] * w[n, k] (+ b[n]): a projection, w as [outputs, inputs].
// One workgroup owns BLOCK_M rows x BLOCK_N outputs.
// Expects: x, w, y, load_x4, load_w4, with_bias, Invocation, product.
// Provides: Params, linear_kernel.
struct Params {
    rows: u32, inputs: u32, outputs: u32, tiles: u32,
    grid_width: u32, workgroup_first: u32, workgroups: u32,
    x_base: u32, x_row: u32, w_base: u32, w_row: u32, y_base: u32, y_row: u32, bias_base: u32,
}

fn fetch_a4(m: u32, k: u32) -> vec4<f32> {
    if k >= params.inputs { return vec4<f32>(); }
    return load_x4(params.x_base + min(m, params.rows - 1u) * params.x_row + k, params.inputs - k);
}

fn fetch_b4(n: u32, k: u32) -> vec4<f32> {
    if k >= params.inputs { return vec4<f32>(); }
    return load_w4(params.w_base + min(n, params.outputs - 1u) * params.w_row + k, params.inputs - k);
}

fn start_part(part: u32) {}

fn emit(m: u32, n: u32, c: f32) {
    y[params.y_base + m * params.y_row + n] = with_bias(c, n);
}

@compute @workgroup_size(THREADS)
fn linear_kernel(invocation: Invocation) {
    let id = params.workgroup_first + invocation.group.y * params.grid_width + invocation.group.x;
    if id >= params.workgroups { return; }
    product(invocation, id % params.tiles * BLOCK_M, id / params.tiles * BLOCK_N, params.rows, params.outputs,
            0u, params.inputs, 0u, params.inputs, 1u);
}
