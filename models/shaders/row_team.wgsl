// out[n] = finished(sum over k of x[k] * w[n, k] + bias[n]): a layer of one row, as hardware likes it. Weights are read
// once, neighbours by neighbouring invocations.
// One workgroup owns TEAMS outputs, a team of 16 invocations each.
// Expects: ROWS (outputs), COLS (inputs), x, out, weight4, with_bias, finished. Provides: row_team_kernel.
const TEAM: u32 = 16u;
const TEAMS: u32 = 8u;
var<workgroup> sums: array<f32, TEAM * TEAMS>;

@compute @workgroup_size(128)
fn row_team_kernel(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32,
                   @builtin(num_workgroups) groups: vec3<u32>) {
    let n = (group.y * groups.x + group.x) * TEAMS + lane / TEAM;
    let row = min(n, ROWS - 1u);
    var sum = 0.0;
    for (var k = lane % TEAM * 4u; k < COLS; k += TEAM * 4u) { sum += dot(x[k / 4u], weight4(row, k)); }
    sums[lane] = sum;
    workgroupBarrier();
    for (var half = TEAM / 2u; half > 0u; half /= 2u) {
        if lane % TEAM < half { sums[lane] += sums[lane + half]; }
        workgroupBarrier();
    }
    if lane % TEAM == 0u && n < ROWS { out[n] = finished(with_bias(sums[lane], n), n); }
}
