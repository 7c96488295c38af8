// Which weights dropout keeps: random numbers of a counter, pcg4d of Jarzynski and Olano (2020), keyed by the seed and
// the pair, whatever kernel asks. Four neighbouring keys share a call.
// Expects: nothing.
// Provides: dropout_key, of a head; dropout_words, of four keys from 4 * quad on; dropout_keeps.
fn dropout_mix(a: vec4<u32>) -> vec4<u32> {
    var v = a;
    v.x += v.y * v.w;
    v.y += v.z * v.x;
    v.z += v.x * v.y;
    v.w += v.y * v.z;
    return v;
}

fn dropout_hash(a: vec4<u32>) -> vec4<u32> {
    let v = dropout_mix(a * 1664525u + 1013904223u);
    return dropout_mix(v ^ (v >> vec4<u32>(16u)));
}

fn dropout_key(seed: vec2<u32>, batch: u32, head: u32) -> vec4<u32> {
    return dropout_hash(vec4<u32>(seed, batch, head));
}

fn dropout_words(key: vec4<u32>, q_pos: u32, quad: u32) -> vec4<u32> {
    return dropout_hash(key + vec4<u32>(q_pos, quad, 0u, 0u));
}

fn dropout_keeps(seed: vec2<u32>, threshold: u32, batch: u32, head: u32, q_pos: u32, kv_pos: u32) -> bool {
    return dropout_words(dropout_key(seed, batch, head), q_pos, kv_pos / 4u)[kv_pos % 4u] >= threshold;
}
