// There is no loop to end, or the caller vouches for the end of every one.
// Expects: nothing.
// Provides: start_loops.
fn start_loops() {}
