// Of the last token of a sequence: h = x + attention(x), logits = h head^T, loss = -ln softmax(logits)[target]; and the
// gradients of the mean loss by logits and by h. Rows of d_h that are no last ones stay 0.
// One workgroup owns one sequence, an invocation a dimension or a value.
// Expects: BATCH, LEN, DIM, VALUES, HEAD_AT.
// Provides: main.
@group(0) @binding(0) var<storage, read> x: array<f32>;
@group(0) @binding(1) var<storage, read> attended: array<f32>;
@group(0) @binding(2) var<storage, read> parameters: array<f32>;
@group(0) @binding(3) var<storage, read> targets: array<u32>;
@group(0) @binding(4) var<storage, read_write> hidden: array<f32>;     // [BATCH, DIM]
@group(0) @binding(5) var<storage, read_write> d_logits: array<f32>;   // [BATCH, VALUES]
@group(0) @binding(6) var<storage, read_write> d_h: array<f32>;        // [BATCH, LEN, DIM]
@group(0) @binding(7) var<storage, read_write> results: array<vec2<f32>>;   // [BATCH]: loss, 1 where the answer is right

var<workgroup> h: array<f32, DIM>;
var<workgroup> logits: array<f32, VALUES>;
var<workgroup> gradients: array<f32, VALUES>;
const_assert VALUES <= DIM;

@compute @workgroup_size(DIM)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let sequence = group.x;
    let row = (sequence * LEN + LEN - 1u) * DIM;
    h[lane] = x[row + lane] + attended[row + lane];
    hidden[sequence * DIM + lane] = h[lane];
    workgroupBarrier();
    if lane < VALUES {
        var sum = 0.0;
        for (var d = 0u; d < DIM; d++) { sum += h[d] * parameters[HEAD_AT + lane * DIM + d]; }
        logits[lane] = sum;
    }
    workgroupBarrier();
    let target_value = targets[sequence];
    var best = 0u;
    for (var i = 1u; i < VALUES; i++) { if logits[i] > logits[best] { best = i; } }
    var sum = 0.0;
    for (var i = 0u; i < VALUES; i++) { sum += exp(logits[i] - logits[best]); }
    if lane < VALUES {
        let p = exp(logits[lane] - logits[best]) / sum;
        gradients[lane] = (p - f32(lane == target_value)) / f32(BATCH);
        d_logits[sequence * VALUES + lane] = gradients[lane];
    }
    workgroupBarrier();
    var d = 0.0;
    for (var i = 0u; i < VALUES; i++) { d += gradients[i] * parameters[HEAD_AT + i * DIM + lane]; }
    d_h[row + lane] = d;
    if lane == 0u {
        let loss = log(sum) + logits[best] - logits[target_value];
        results[sequence] = vec2<f32>(loss, f32(best == target_value));
    }
}
