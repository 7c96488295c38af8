// cap * tanh(s / cap), with a tanh of its own: a device's may lose all digits near 0, or be NaN past 40. The polynomial
// is that of Cephes.
// Expects: params.softcap.
// Provides: capped.
fn tanh_of(x: f32) -> f32 {
    let size = abs(x);
    let z = x * x;
    let p = fma(fma(fma(fma(-5.70498872745e-3, z, 2.06390887954e-2), z, -5.37397155531e-2), z, 1.33314422036e-1), z,
                -3.33332819422e-1);
    let large = 1.0 - 2.0 / (exp(2.0 * min(size, 15.0)) + 1.0);
    return select(fma(p * z, x, x), select(large, -large, x < 0.0), size > 0.625);
}
fn capped(s: f32) -> f32 { return params.softcap * tanh_of(s / params.softcap); }
