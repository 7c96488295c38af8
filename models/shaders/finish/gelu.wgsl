// y * P(normal <= y) = y / 2 * (1 + erf(y / sqrt 2)); erf as Abramowitz and Stegun 7.1.26, off by 1.5e-7 at most.
// Provides: finished(y, at): what is stored.
fn erf(x: f32) -> f32 {
    let a = abs(x);
    let t = 1.0 / fma(0.3275911, a, 1.0);
    let poly = t * fma(t, fma(t, fma(t, fma(t, 1.061405429, -1.453152027), 1.421413741), -0.284496736), 0.254829592);
    return sign(x) * (1.0 - poly * exp(-a * a));
}

fn finished(y: f32, at: u32) -> f32 { return 0.5 * y * (1.0 + erf(y * 0.70710678)); }
