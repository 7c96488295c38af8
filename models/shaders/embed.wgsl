// out[i] = FACTOR * w[tokens[i]] + position[i]; a token that the table does not have is a row of zeros.
// One workgroup owns a row, an invocation four neighbouring columns at a time.
// Expects: COLS, ROWS, FACTOR, tokens, out, weight4, position4. Provides: embed_kernel.
const THREADS: u32 = 64u;

@compute @workgroup_size(THREADS)
fn embed_kernel(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let row = group.x;
    let token = tokens[row];
    for (var column = lane * 4u; column < COLS; column += THREADS * 4u) {
        var x = vec4<f32>();
        if token < ROWS { x = FACTOR * weight4(token, column); }
        out[(row * COLS + column) / 4u] = x + position4(row, column);
    }
}
