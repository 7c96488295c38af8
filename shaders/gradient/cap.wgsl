// The soft cap's derivative: 1 - tanh^2.
// Expects: params.softcap.
// Provides: cap_slope, of a capped score.
fn cap_slope(s: f32) -> f32 {
    let t = s / params.softcap;
    return fma(-t, t, 1.0);
}
