// out = mean / |mean| of the rows of a sequence: the embedding of a sentence.
// One workgroup owns a sequence. Expects: COLS, x, lens, out, total. Provides: pool_kernel.
const THREADS: u32 = 64u;

@compute @workgroup_size(THREADS)
fn pool_kernel(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let seq_len = arrayLength(&x) / COLS / arrayLength(&lens);
    let len = clamp(lens[group.x], 1u, seq_len);
    let first = group.x * seq_len * COLS;
    var squares = 0.0;
    for (var i = lane; i < COLS; i += THREADS) {
        var sum = 0.0;
        for (var row = 0u; row < len; row++) { sum += x[first + row * COLS + i]; }
        let mean = sum / f32(len);
        out[group.x * COLS + i] = mean;
        squares = fma(mean, mean, squares);
    }
    // No invocation reads what another wrote.
    let factor = inverseSqrt(max(total(lane, squares), 1e-24));
    for (var i = lane; i < COLS; i += THREADS) { out[group.x * COLS + i] *= factor; }
}
