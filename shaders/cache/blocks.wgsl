// Blocks of elements that share a scale.
// Expects: DIM, a multiple of 32; turned4, store_block.
// Provides: EACH, write_part: elements `d` to `d + EACH - 1` of a row.
const EACH: u32 = 32u;
const_assert DIM % EACH == 0u;
fn write_part(row: u32, d: u32, x_first: u32, pos: u32) {
    store_block(row + d, turned4(x_first, d, pos), turned4(x_first, d + 4u, pos), turned4(x_first, d + 8u, pos),
                turned4(x_first, d + 12u, pos), turned4(x_first, d + 16u, pos), turned4(x_first, d + 20u, pos),
                turned4(x_first, d + 24u, pos), turned4(x_first, d + 28u, pos));
}
