// Elements that each stand for themselves.
// Expects: DIM, turned4, store_out4.
// Provides: EACH, write_part: elements `d` to `d + EACH - 1` of a row, as far as there are any.
const EACH: u32 = 4u;
fn write_part(row: u32, d: u32, x_first: u32, pos: u32) {
    store_out4(row + d, DIM - d, turned4(x_first, d, pos));
}
