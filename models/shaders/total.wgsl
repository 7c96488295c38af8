// The sum and the maximum of what every invocation of a workgroup has, in all of them.
// Expects: THREADS, a power of two. Provides: total(lane, value), greatest(lane, value).
var<workgroup> joined: array<f32, THREADS>;

fn total(lane: u32, value: f32) -> f32 {
    joined[lane] = value;
    workgroupBarrier();
    for (var half = THREADS / 2u; half > 0u; half /= 2u) {
        if lane < half { joined[lane] += joined[lane + half]; }
        workgroupBarrier();
    }
    let sum = joined[0];
    workgroupBarrier();
    return sum;
}

fn greatest(lane: u32, value: f32) -> f32 {
    joined[lane] = value;
    workgroupBarrier();
    for (var half = THREADS / 2u; half > 0u; half /= 2u) {
        if lane < half { joined[lane] = max(joined[lane], joined[lane + half]); }
        workgroupBarrier();
    }
    let most = joined[0];
    workgroupBarrier();
    return most;
}
