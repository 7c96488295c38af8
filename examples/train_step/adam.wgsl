// m = b1 m + (1 - b1) g; v = b2 v + (1 - b2) g^2; p -= rate m' / (sqrt(v') + epsilon), where m' and v' are m and v over
// what the decay left of 1 after so many steps: https://arxiv.org/abs/1412.6980
// One invocation owns one parameter.
// Expects: PARAMETERS, RATE.
// Provides: main.
@group(0) @binding(0) var<storage, read> state: array<u32>;
@group(0) @binding(1) var<storage, read> gradients: array<f32>;
@group(0) @binding(2) var<storage, read_write> moments: array<vec2<f32>>;
@group(0) @binding(3) var<storage, read_write> parameters: array<f32>;

const DECAY = vec2<f32>(0.9, 0.999);
const EPSILON = 1e-8;

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let i = id.x;
    if i >= PARAMETERS { return; }
    let g = gradients[i];
    let moment = mix(vec2<f32>(g, g * g), moments[i], DECAY);
    moments[i] = moment;
    let unbiased = moment / (1.0 - pow(DECAY, vec2<f32>(f32(state[1] + 1u))));
    parameters[i] -= RATE * unbiased.x / (sqrt(unbiased.y) + EPSILON);
}
