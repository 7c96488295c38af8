// What the 8 invocations that share a row have of it, joined by shuffles: neighbours in a subgroup of at least 8.
// Expects: nothing.
// Provides: Lane, lane_of; share: nothing to do; row_max, row_sum: of the 8 values.
struct Lane {
    @builtin(subgroup_id) subgroup: u32,
    @builtin(subgroup_size) size: u32,
    @builtin(subgroup_invocation_id) index: u32,
}

// Nothing says that invocations are numbered in the order of their subgroups.
fn lane_of(lane: Lane) -> u32 { return lane.subgroup * lane.size + lane.index; }

fn share(row: u32, x: u32, value: f32) {}

fn row_max(row: u32, value: f32) -> f32 {
    let pair = max(value, subgroupShuffleXor(value, 1u));
    let four = max(pair, subgroupShuffleXor(pair, 2u));
    return max(four, subgroupShuffleXor(four, 4u));
}

fn row_sum(row: u32, value: f32) -> f32 {
    let pair = value + subgroupShuffleXor(value, 1u);
    let four = pair + subgroupShuffleXor(pair, 2u);
    return four + subgroupShuffleXor(four, 4u);
}
