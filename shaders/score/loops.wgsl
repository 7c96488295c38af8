// How many rounds the loops of one call of a caller's function may take; once they are used up, none.
// Expects: nothing.
// Provides: loop_budget, start_loops.
var<private> loop_budget: u32 = 65536u;
fn start_loops() { loop_budget = select(0u, 65536u, loop_budget != 0u); }
