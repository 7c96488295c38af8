// The caller vouches for the end of every loop.
// Expects: nothing.
// Provides: start_loops.
fn start_loops() {}
