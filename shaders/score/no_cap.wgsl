// No soft cap.
// Expects: nothing.
// Provides: capped.
fn capped(s: f32) -> f32 { return s; }
