// token ~ softmax(logits / temperature), of the most probable tokens that together have top_p at least.
// How probable a token must be is found by halving what its f32 bits may be, as bits of positive numbers are in their
// order: no sorting. Random numbers are a hash of seed and step.
// One workgroup owns it all, an invocation a range of tokens. Overwrites logits.
// Expects: COLS, INVERSE_TEMPERATURE, TOP_P, SEED, logits, step, token, total, greatest. Provides: sample_kernel.
const THREADS: u32 = 256u;
const EACH: u32 = (COLS + THREADS - 1u) / THREADS;
var<workgroup> masses: array<f32, THREADS>;

// PCG, by Jarzynski and Olano.
fn hash(x: u32) -> u32 {
    let state = x * 747796405u + 2891336453u;
    let word = ((state >> ((state >> 28u) + 4u)) ^ state) * 277803737u;
    return (word >> 22u) ^ word;
}

@compute @workgroup_size(THREADS)
fn sample_kernel(@builtin(local_invocation_index) lane: u32) {
    let first = min(lane * EACH, COLS);
    let end = min(first + EACH, COLS);
    var most = -3.4e38;
    for (var i = first; i < end; i++) { most = max(most, logits[i]); }
    most = greatest(lane, most);
    var sum = 0.0;
    for (var i = first; i < end; i++) {
        let p = exp((logits[i] - most) * INVERSE_TEMPERATURE);
        logits[i] = p;
        sum += p;
    }
    let wanted = total(lane, sum) * TOP_P;

    // Tokens as probable as `low` have enough together, those as probable as `high` have not.
    var low = 0u;
    var high = bitcast<u32>(1.0) + 1u;
    var mass = 0.0;
    for (var i = 0u; i < 31u; i++) {
        let middle = low + (high - low) / 2u;
        mass = 0.0;
        for (var j = first; j < end; j++) { mass += select(0.0, logits[j], bitcast<u32>(logits[j]) >= middle); }
        let enough = total(lane, mass) >= wanted;
        low = select(low, middle, enough);
        high = select(middle, high, enough);
    }
    mass = 0.0;
    for (var j = first; j < end; j++) { mass += select(0.0, logits[j], bitcast<u32>(logits[j]) >= low); }
    masses[lane] = mass;
    workgroupBarrier();

    if lane == 0u {
        var all = 0.0;
        for (var i = 0u; i < THREADS; i++) { all += masses[i]; }
        var left = f32(hash(SEED ^ hash(step[0])) >> 8u) * 0x1p-24f * all;
        var range = 0u;
        for (var i = 0u; i < THREADS; i++) {
            if masses[i] == 0.0 { continue; }
            range = i;
            if left < masses[i] { break; }
            left -= masses[i];
        }
        // Rounding may leave a little at the end: the last one that may be taken is.
        var choice = 0u;
        for (var j = min(range * EACH, COLS); j < min(range * EACH + EACH, COLS); j++) {
            if bitcast<u32>(logits[j]) >= low {
                choice = j;
                left -= logits[j];
                if left < 0.0 { break; }
            }
        }
        token[0] = choice;
    }
}
