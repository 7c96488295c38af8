// out = (x - mean) / sqrt(variance + epsilon) * scale + bias; the variance of differences, so that no digits cancel.
// One workgroup owns a row. Expects: COLS, EPSILON, x, scale, bias, out, total. Provides: layer_norm_kernel.
const THREADS: u32 = 64u;

@compute @workgroup_size(THREADS)
fn layer_norm_kernel(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let first = group.x * COLS;
    var sum = 0.0;
    for (var i = lane; i < COLS; i += THREADS) { sum += x[first + i]; }
    let mean = total(lane, sum) / f32(COLS);
    var squares = 0.0;
    for (var i = lane; i < COLS; i += THREADS) {
        let off = x[first + i] - mean;
        squares = fma(off, off, squares);
    }
    let factor = inverseSqrt(total(lane, squares) / f32(COLS) + EPSILON);
    for (var i = lane; i < COLS; i += THREADS) { out[first + i] = fma((x[first + i] - mean) * factor, scale[i], bias[i]); }
}
