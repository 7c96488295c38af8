// Sums over the LANES invocations of a team, joined through workgroup memory.
// Expects: LANES, THREADS, PAIRS_EACH.
// Provides: Lane, lane_of, join.
struct Lane { @builtin(local_invocation_index) index: u32 }

var<workgroup> part: array<f32, THREADS * PAIRS_EACH>;

fn lane_of(lane: Lane) -> u32 { return lane.index; }

fn join(lane: u32, s: ptr<function, array<f32, PAIRS_EACH>>) {
    workgroupBarrier();
    for (var i = 0u; i < PAIRS_EACH; i++) { part[i * THREADS + lane] = (*s)[i]; }
    workgroupBarrier();
    for (var i = 0u; i < PAIRS_EACH; i++) {
        var sum = 0.0;
        for (var x = 0u; x < LANES; x++) { sum += part[i * THREADS + lane / LANES * LANES + x]; }
        (*s)[i] = sum;
    }
}
