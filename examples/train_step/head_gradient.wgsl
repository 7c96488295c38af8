// d_head[i, d] = sum over sequences of d_logits[sequence, i] * hidden[sequence, d].
// One invocation owns one element.
// Expects: BATCH, DIM, VALUES, HEAD_AT.
// Provides: main.
@group(0) @binding(0) var<storage, read> d_logits: array<f32>;
@group(0) @binding(1) var<storage, read> hidden: array<f32>;
@group(0) @binding(2) var<storage, read_write> gradients: array<f32>;

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let value = id.x / DIM;
    let d = id.x % DIM;
    if value >= VALUES { return; }
    var sum = 0.0;
    for (var b = 0u; b < BATCH; b++) { sum += d_logits[b * VALUES + value] * hidden[b * DIM + d]; }
    gradients[HEAD_AT + id.x] = sum;
}
