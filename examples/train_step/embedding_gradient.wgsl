// d_key[i] = sum of d_x + d_h over the tokens whose key is i: what goes through the attention and what goes around it. Of
// values the same.
// One workgroup owns one key or one value, an invocation a dimension.
// Expects: ROWS, DIM, KEYS, KEY_AT, VALUE_AT.
// Provides: main.
@group(0) @binding(0) var<storage, read> tokens: array<vec2<u32>>;
@group(0) @binding(1) var<storage, read> d_x: array<f32>;
@group(0) @binding(2) var<storage, read> d_h: array<f32>;
@group(0) @binding(3) var<storage, read_write> gradients: array<f32>;

@compute @workgroup_size(DIM)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let is_key = group.x < KEYS;
    let own = select(group.x - KEYS, group.x, is_key);
    var sum = 0.0;
    for (var row = 0u; row < ROWS; row++) {
        let token = tokens[row];
        if select(token.y, token.x, is_key) == own { sum += d_x[row * DIM + lane] + d_h[row * DIM + lane]; }
    }
    gradients[select(VALUE_AT, KEY_AT, is_key) + own * DIM + lane] = sum;
}
