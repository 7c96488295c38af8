// Sums over the LANES invocations of a team, joined by shuffles: neighbours in a subgroup of at least as many.
// Expects: LANES, PAIRS_EACH.
// Provides: Lane, lane_of, join.
struct Lane {
    @builtin(subgroup_id) subgroup: u32,
    @builtin(subgroup_size) size: u32,
    @builtin(subgroup_invocation_id) index: u32,
}

// Nothing says that invocations are numbered in the order of their subgroups.
fn lane_of(lane: Lane) -> u32 { return lane.subgroup * lane.size + lane.index; }

fn join(lane: u32, s: ptr<function, array<f32, PAIRS_EACH>>) {
    for (var i = 0u; i < PAIRS_EACH; i++) {
        var sum = (*s)[i];
        sum += subgroupShuffleXor(sum, 1u);
        sum += subgroupShuffleXor(sum, 2u);
        sum += subgroupShuffleXor(sum, 4u);
        if LANES > 8u { sum += subgroupShuffleXor(sum, 8u); }
        if LANES > 16u { sum += subgroupShuffleXor(sum, 16u); }
        (*s)[i] = sum;
    }
}
