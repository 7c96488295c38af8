// No soft cap.
// Expects: nothing.
// Provides: cap_slope.
fn cap_slope(s: f32) -> f32 { return 1.0; }
