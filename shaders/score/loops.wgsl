// How many rounds the loops of one call of a caller's function may take; once they are used up, none. Some software
// drivers end loops themselves after 65,535, and other rows with them.
// Expects: nothing.
// Provides: loop_budget, start_loops.
var<private> loop_budget: u32 = 16384u;
fn start_loops() { loop_budget = select(0u, 16384u, loop_budget != 0u); }
