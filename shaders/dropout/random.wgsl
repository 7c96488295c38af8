// Which weights dropout keeps: random numbers of a counter, pcg4d of Jarzynski and Olano (2020), keyed by the seed and
// the pair, whatever kernel asks. Four neighbouring keys share a call.
// Expects: nothing.
// Provides: dropout_keeps.
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

fn dropout_keeps(seed: vec2<u32>, threshold: u32, batch: u32, head: u32, q_pos: u32, kv_pos: u32) -> bool {
    let key = dropout_hash(vec4<u32>(seed, batch, head));
    let words = dropout_hash(key + vec4<u32>(q_pos, kv_pos / 4u, 0u, 0u));
    return words[kv_pos % 4u] >= threshold;
}
