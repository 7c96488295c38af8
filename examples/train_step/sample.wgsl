// The step's sequences: PAIRS pairs of a key and a value, no key twice; then one of the keys alone, whose value is asked for.
// One invocation owns one sequence.
// Expects: BATCH, LEN, PAIRS, KEYS, VALUES, NO_VALUE.
// Provides: main.
@group(0) @binding(0) var<storage, read> state: array<u32>;                // seed, steps done
@group(0) @binding(1) var<storage, read_write> tokens: array<vec2<u32>>;   // [BATCH, LEN]: key, value
@group(0) @binding(2) var<storage, read_write> targets: array<u32>;        // [BATCH]

var<private> random: u32;

// O'Neill's PCG: https://www.pcg-random.org
fn mixed(x: u32) -> u32 {
    let word = ((x >> ((x >> 28u) + 4u)) ^ x) * 277803737u;
    return (word >> 22u) ^ word;
}

fn below(n: u32) -> u32 {
    random = random * 747796405u + 2891336453u;
    return mixed(random) % n;
}

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let sequence = id.x;
    if sequence >= BATCH { return; }
    // The same sequence of a step, whatever the device.
    random = mixed(state[0] * 747796405u + mixed(state[1] * 747796405u + mixed(sequence * 747796405u + 1u)));
    var keys: array<u32, KEYS>;
    for (var i = 0u; i < KEYS; i++) { keys[i] = i; }
    let asked = below(PAIRS);
    for (var i = 0u; i < PAIRS; i++) {
        let j = i + below(KEYS - i);
        let key = keys[j];
        keys[j] = keys[i];
        keys[i] = key;
        let value = below(VALUES);
        tokens[sequence * LEN + i] = vec2<u32>(key, value);
        if i == asked { targets[sequence] = value; }
    }
    tokens[sequence * LEN + PAIRS] = vec2<u32>(keys[asked], NO_VALUE);
}
