// out[m, n] = finished(sum over k of x[m, k] * w[n, k] + bias[n]): a layer of many rows, as software GPUs like it. An
// invocation owns two outputs of 16 rows, whose x it shares with all others: the same address, loaded once. No barrier.
// One workgroup owns 16 rows x 32 outputs.
// Expects: ROWS (outputs), COLS (inputs, a multiple of 32), x, out, weight4, with_bias, finished.
// Provides: linear_lane_kernel.
const BLOCK_M: u32 = 16u;
const THREADS: u32 = 16u;
const CHUNK4: u32 = 4u;

fn dot_onto(a: vec4<f32>, b: vec4<f32>, c: f32) -> f32 {
    return fma(a.w, b.w, fma(a.z, b.z, fma(a.y, b.y, fma(a.x, b.x, c))));
}

@compute @workgroup_size(THREADS)
fn linear_lane_kernel(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let rows = arrayLength(&x) * 4u / COLS;
    let n0 = group.y * 2u * THREADS + lane;
    let n1 = n0 + THREADS;
    var sums0: array<f32, BLOCK_M>;
    var sums1: array<f32, BLOCK_M>;
    var w0: array<vec4<f32>, CHUNK4>;
    var w1: array<vec4<f32>, CHUNK4>;
    for (var k = 0u; k < COLS; k += 4u * CHUNK4) {
        for (var i = 0u; i < CHUNK4; i++) {
            w0[i] = weight4(min(n0, ROWS - 1u), k + 4u * i);
            w1[i] = weight4(min(n1, ROWS - 1u), k + 4u * i);
        }
        for (var r = 0u; r < BLOCK_M; r++) {
            let m = min(group.x * BLOCK_M + r, rows - 1u);
            for (var i = 0u; i < CHUNK4; i++) {
                let a = x[(m * COLS + k) / 4u + i];
                sums0[r] = dot_onto(a, w0[i], sums0[r]);
                sums1[r] = dot_onto(a, w1[i], sums1[r]);
            }
        }
    }
    for (var r = 0u; r < BLOCK_M; r++) {
        let m = group.x * BLOCK_M + r;
        if m < rows {
            if n0 < ROWS { out[m * ROWS + n0] = finished(with_bias(sums0[r], n0), m * ROWS + n0); }
            if n1 < ROWS { out[m * ROWS + n1] = finished(with_bias(sums1[r], n1), m * ROWS + n1); }
        }
    }
}
