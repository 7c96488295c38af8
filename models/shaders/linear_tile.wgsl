// out[m, n] = finished(sum over k of x[m, k] * w[n, k] + bias[n]): a layer of many rows, as hardware likes it. 8 x 4
// results an invocation, in registers; chunks of 16 k in workgroup memory, rows padded against bank conflicts.
// One workgroup owns 128 rows x 64 outputs.
// Expects: ROWS (outputs), COLS (inputs, a multiple of 32), x, out, weight4, with_bias, finished.
// Provides: linear_tile_kernel.
const BLOCK_M: u32 = 128u;
const BLOCK_N: u32 = 64u;
const EACH_M: u32 = 8u;
const CHUNK4: u32 = 4u;
const PITCH: u32 = CHUNK4 + 1u;
const ACROSS: u32 = BLOCK_N / 4u;
const THREADS: u32 = ACROSS * BLOCK_M / EACH_M;
var<workgroup> x_tile: array<vec4<f32>, BLOCK_M * PITCH>;
var<workgroup> w_tile: array<vec4<f32>, BLOCK_N * PITCH>;

@compute @workgroup_size(THREADS)
fn linear_tile_kernel(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let rows = arrayLength(&x) * 4u / COLS;
    let m_first = group.x * BLOCK_M + lane / ACROSS * EACH_M;
    let n_first = group.y * BLOCK_N + lane % ACROSS;
    var sums: array<vec4<f32>, EACH_M>;
    for (var k = 0u; k < COLS; k += 4u * CHUNK4) {
        workgroupBarrier();
        for (var i = lane; i < BLOCK_M * CHUNK4; i += THREADS) {
            let m = min(group.x * BLOCK_M + i / CHUNK4, rows - 1u);
            x_tile[i / CHUNK4 * PITCH + i % CHUNK4] = x[(m * COLS + k) / 4u + i % CHUNK4];
        }
        for (var i = lane; i < BLOCK_N * CHUNK4; i += THREADS) {
            let n = min(group.y * BLOCK_N + i / CHUNK4, ROWS - 1u);
            w_tile[i / CHUNK4 * PITCH + i % CHUNK4] = weight4(n, k + i % CHUNK4 * 4u);
        }
        workgroupBarrier();
        for (var i = 0u; i < CHUNK4; i++) {
            let w0 = w_tile[lane % ACROSS * PITCH + i];
            let w1 = w_tile[(lane % ACROSS + ACROSS) * PITCH + i];
            let w2 = w_tile[(lane % ACROSS + 2u * ACROSS) * PITCH + i];
            let w3 = w_tile[(lane % ACROSS + 3u * ACROSS) * PITCH + i];
            for (var r = 0u; r < EACH_M; r++) {
                let a = x_tile[(lane / ACROSS * EACH_M + r) * PITCH + i];
                sums[r] += vec4<f32>(dot(a, w0), dot(a, w1), dot(a, w2), dot(a, w3));
            }
        }
    }
    for (var r = 0u; r < EACH_M; r++) {
        for (var c = 0u; c < 4u; c++) {
            let n = n_first + c * ACROSS;
            let at = (m_first + r) * ROWS + n;
            if m_first + r < rows && n < ROWS { out[at] = finished(with_bias(sums[r][c], n), at); }
        }
    }
}
