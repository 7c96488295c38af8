// sums[n] = sum over m of y[m, n] (+ sums[n], where rows come in parts): the gradient of a projection's bias.
// One workgroup owns COLUMNS columns; the invocations that share one take rows in turn.
// Expects: THREADS, COLUMNS, y, sums.
// Provides: Params, column_sums_kernel.
const LANES: u32 = THREADS / COLUMNS;
const_assert THREADS % COLUMNS == 0u;

struct Params {
    rows: u32, columns: u32, grid_width: u32, workgroup_first: u32, workgroups: u32,
    y_base: u32, y_row: u32, sums_base: u32, accumulate: u32,
}

var<workgroup> lane_sums: array<f32, THREADS>;

@compute @workgroup_size(THREADS)
fn column_sums_kernel(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let id = params.workgroup_first + group.y * params.grid_width + group.x;
    if id >= params.workgroups { return; }
    let column = id * COLUMNS + lane % COLUMNS;
    let exists = column < params.columns;
    let first = params.y_base + min(column, params.columns - 1u);
    var sum = 0.0;
    for (var row = lane / COLUMNS; row < params.rows; row += LANES) { sum += y[first + row * params.y_row]; }
    lane_sums[lane] = sum;
    workgroupBarrier();
    if exists && lane < COLUMNS {
        for (var other = 1u; other < LANES; other++) { sum += lane_sums[lane + other * COLUMNS]; }
        let i = params.sums_base + column;
        if params.accumulate != 0u { sum += sums[i]; }
        sums[i] = sum;
    }
}
