// token = where logits are greatest, the first such place.
// One workgroup owns it all. Expects: COLS, logits, token. Provides: argmax_kernel.
const THREADS: u32 = 256u;
var<workgroup> best: array<f32, THREADS>;
var<workgroup> place: array<u32, THREADS>;

@compute @workgroup_size(THREADS)
fn argmax_kernel(@builtin(local_invocation_index) lane: u32) {
    var most = -3.4e38;
    var at = COLS - 1u;
    for (var i = lane; i < COLS; i += THREADS) {
        if logits[i] > most { most = logits[i]; at = i; }
    }
    best[lane] = most;
    place[lane] = at;
    workgroupBarrier();
    for (var half = THREADS / 2u; half > 0u; half /= 2u) {
        if lane < half {
            let other = lane + half;
            if best[other] > best[lane] || best[other] == best[lane] && place[other] < place[lane] {
                best[lane] = best[other];
                place[lane] = place[other];
            }
        }
        workgroupBarrier();
    }
    if lane == 0u { token[0] = place[0]; }
}
