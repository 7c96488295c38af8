// history[step] = mean loss and share of right answers; then a step more is done.
// One invocation owns all.
// Expects: BATCH, STEPS.
// Provides: main.
@group(0) @binding(0) var<storage, read> results: array<vec2<f32>>;
@group(0) @binding(1) var<storage, read_write> state: array<u32>;
@group(0) @binding(2) var<storage, read_write> history: array<vec2<f32>>;   // [STEPS]

@compute @workgroup_size(1)
fn main() {
    var sum = vec2<f32>();
    for (var i = 0u; i < BATCH; i++) { sum += results[i]; }
    history[min(state[1], STEPS - 1u)] = sum / f32(BATCH);
    state[1] += 1u;
}
