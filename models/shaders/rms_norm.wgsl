// out = x / sqrt(mean(x^2) + epsilon) * scale.
// One workgroup owns a row. Expects: COLS, EPSILON, x, scale, out, total. Provides: rms_norm_kernel.
const THREADS: u32 = 64u;

@compute @workgroup_size(THREADS)
fn rms_norm_kernel(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let first = group.x * COLS;
    var squares = 0.0;
    for (var i = lane; i < COLS; i += THREADS) { squares = fma(x[first + i], x[first + i], squares); }
    let factor = inverseSqrt(total(lane, squares) / f32(COLS) + EPSILON);
    for (var i = lane; i < COLS; i += THREADS) { out[first + i] = x[first + i] * factor * scale[i]; }
}
