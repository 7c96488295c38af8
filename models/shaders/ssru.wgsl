// state = f * state + (1 - f) * c, out += max(state, 0), where x is a row's candidate c and gate side by side, and
// f = 1 / (1 + exp(-gate)): the simpler simple recurrent unit, one token.
// One workgroup owns it all. Expects: COLS, x, state, out. Provides: ssru_kernel.
const THREADS: u32 = 64u;

@compute @workgroup_size(THREADS)
fn ssru_kernel(@builtin(local_invocation_index) lane: u32) {
    for (var i = lane; i < COLS; i += THREADS) {
        let forget = 1.0 / (1.0 + exp(clamp(-x[COLS + i], -80.0, 80.0)));
        let kept = fma(forget, state[i] - x[i], x[i]);
        state[i] = kept;
        out[i] += max(kept, 0.0);
    }
}
