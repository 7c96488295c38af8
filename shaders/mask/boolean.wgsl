// mask[b, h, i, j], of MASK_BITS bits an element in 32-bit words: anything but 0 shows the pair.
// Expects: Params, mask, MASK_BITS.
// Provides: mask_shows.
const MASK_ELEMENTS: u32 = 32u / MASK_BITS;
fn mask_shows(batch: u32, head: u32, row: u32, key: u32) -> bool {
    let i = params.mask_base + batch * params.mask_batch + head * params.mask_head + row * params.mask_row
          + min(key, params.kv_len - 1u) * params.mask_key;
    return extractBits(mask[i / MASK_ELEMENTS], i % MASK_ELEMENTS * MASK_BITS, MASK_BITS) != 0u;
}
