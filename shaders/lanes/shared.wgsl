// What the 8 invocations that share a row have of it, joined through workgroup memory.
// Expects: BLOCK_Q.
// Provides: Lane, lane_of; share: to be followed by a barrier; row_max, row_sum: what the 8 have shared.
struct Lane { @builtin(local_invocation_index) index: u32 }

var<workgroup> row_part: array<f32, BLOCK_Q * 8u>;

fn lane_of(lane: Lane) -> u32 { return lane.index; }

fn share(row: u32, x: u32, value: f32) { row_part[row * 8u + x] = value; }

fn row_max(row: u32, value: f32) -> f32 {
    var largest = row_part[row * 8u];
    for (var i = 1u; i < 8u; i++) { largest = max(largest, row_part[row * 8u + i]); }
    return largest;
}

fn row_sum(row: u32, value: f32) -> f32 {
    var sum = 0.0;
    for (var i = 0u; i < 8u; i++) { sum += row_part[row * 8u + i]; }
    return sum;
}
