// x[row, d] = key[tokens[row].x, d] + value[tokens[row].y, d], where the token has a value.
// One invocation owns one element.
// Expects: ROWS, DIM, NO_VALUE, KEY_AT, VALUE_AT.
// Provides: main.
@group(0) @binding(0) var<storage, read> tokens: array<vec2<u32>>;
@group(0) @binding(1) var<storage, read> parameters: array<f32>;
@group(0) @binding(2) var<storage, read_write> x: array<f32>;   // [ROWS, DIM]

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let row = id.x / DIM;
    let d = id.x % DIM;
    if row >= ROWS { return; }
    let token = tokens[row];
    var sum = parameters[KEY_AT + token.x * DIM + d];
    if token.y != NO_VALUE { sum += parameters[VALUE_AT + token.y * DIM + d]; }
    x[id.x] = sum;
}
