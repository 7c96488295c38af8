// out[n] = finished(sum over k of x[k] * w[n, k] + bias[n]): a layer of one row, as software GPUs like it. An invocation
// owns an output; x is at the same address for all, loaded once. A block's scale and minimum are multiplied with the sums
// of its products and of its x.
// One workgroup owns 32 outputs.
// Expects: ROWS (outputs), COLS (inputs, a multiple of 32), x, out, range, code4, with_bias, finished.
// Provides: row_lane_kernel.
@compute @workgroup_size(32)
fn row_lane_kernel(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32,
                   @builtin(num_workgroups) groups: vec3<u32>) {
    let n = (group.y * groups.x + group.x) * 32u + lane;
    let row = min(n, ROWS - 1u);
    var sum = vec4<f32>();
    for (var first = 0u; first < COLS; first += 32u) {
        var products = vec4<f32>();
        var plain = vec4<f32>();
        for (var i = 0u; i < 8u; i++) {
            let x4 = x[first / 4u + i];
            products = fma(x4, code4(row, first + 4u * i), products);
            plain += x4;
        }
        let of_block = range(row, first);
        sum = fma(products, vec4<f32>(of_block.x), fma(plain, vec4<f32>(of_block.y), sum));
    }
    if n < ROWS { out[n] = finished(with_bias(sum.x + sum.y + sum.z + sum.w, n), n); }
}
