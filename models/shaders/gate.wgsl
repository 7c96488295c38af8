// out = silu(g) * u, where x is a row's g and u side by side, and silu(g) = g / (1 + exp(-g)): the middle of SwiGLU.
// One workgroup owns a row of COLS. Expects: COLS, x, out. Provides: gate_kernel.
const THREADS: u32 = 64u;

@compute @workgroup_size(THREADS)
fn gate_kernel(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let first = group.x * COLS;
    for (var i = lane; i < COLS; i += THREADS) {
        let g = x[2u * first + i];
        // Past 80, exp would leave what f32 holds; the quotient is 0 to f32 there.
        out[first + i] = g / (1.0 + exp(min(-g, 80.0))) * x[2u * first + COLS + i];
    }
}
