// Gathers the small inputs into one table, so that a kernel binds them all at once: sequences (8 words each: first
// row of q, rows of q, first row of k, rows of k, diagonal, band's begin and end), the sequence of every packed row,
// slopes, sinks, pages, a block mask made earlier, and a seed. Nothing in a buffer can point out of a tensor: lengths and
// pages are clamped.
// One invocation owns one word, or one sequence.
// Expects: THREADS, tables; Q_LENS, KV_LENS, PACKED, DIAGONALS, SLOPES, SINKS, PAGES, BLOCK_MASK, SEED: what is given; q_lens_at
// and so on, which read it.
// Provides: Params, gather_kernel.
struct Params {
    grid_width: u32, workgroup_first: u32, workgroups: u32,
    sequences: u32, rows: u32, slopes: u32, sinks: u32, pages: u32, classes: u32, seed_words: u32,
    q_len: u32, kv_len: u32, sequences_at: u32, rows_at: u32, slopes_at: u32, sinks_at: u32, pages_at: u32,
    classes_at: u32, seed_at: u32,
    q_lens_base: u32, kv_lens_base: u32, cu_seqlens_q_base: u32, cu_seqlens_k_base: u32, diag_offsets_base: u32,
    alibi_slopes_base: u32, sinks_base: u32, block_table_base: u32, block_mask_base: u32, seed_base: u32, tables_base: u32,
    diagonal: i32, bottom_right: u32, left: u32, right: u32, open: u32, last_page: u32,
}

const BAND_END: u32 = 1u << 30u;

// d + n, within +-2^30.
fn plus(d: i32, n: u32) -> i32 {
    if d >= 0 { return i32(min(u32(d) + min(n, BAND_END), BAND_END)); }
    let below = 0u - bitcast<u32>(d);
    if n >= below { return i32(min(n - below, BAND_END)); }
    return -i32(min(below - n, BAND_END));
}

// d - n, within +-2^30.
fn minus(d: i32, n: u32) -> i32 {
    if d < 0 { return -i32(min((0u - bitcast<u32>(d)) + min(n, BAND_END), BAND_END)); }
    let above = u32(d);
    if above >= n { return i32(min(above - n, BAND_END)); }
    return -i32(min(n - above, BAND_END));
}

fn write_sequence(i: u32) {
    var q_start = 0u;
    var q_len = params.q_len;
    var kv_start = 0u;
    var kv_len = params.kv_len;
    if PACKED {
        q_start = min(cu_seqlens_q_at(i), params.q_len);
        q_len = max(min(cu_seqlens_q_at(i + 1u), params.q_len), q_start) - q_start;
        kv_start = min(cu_seqlens_k_at(i), params.kv_len);
        kv_len = max(min(cu_seqlens_k_at(i + 1u), params.kv_len), kv_start) - kv_start;
    }
    if Q_LENS { q_len = min(q_lens_at(i), params.q_len); }
    if KV_LENS { kv_len = min(kv_lens_at(i), params.kv_len); }
    var d = params.diagonal;
    if params.bottom_right != 0u { d = i32(kv_len) - i32(q_len); }
    if DIAGONALS { d = bitcast<i32>(diag_offsets_at(i)); }
    // `left` keys before a query's own and up to `right` after it, where these ends are not open (bits 0 and 1).
    let begin = select(minus(d, params.left), -i32(BAND_END), (params.open & 1u) != 0u);
    let end = select(plus(d, params.right), i32(BAND_END), (params.open & 2u) != 0u);
    let at = params.tables_base + params.sequences_at + i * 8u;
    tables[at] = q_start;
    tables[at + 1u] = q_len;
    tables[at + 2u] = kv_start;
    tables[at + 3u] = kv_len;
    tables[at + 4u] = bitcast<u32>(d);
    tables[at + 5u] = bitcast<u32>(begin);
    tables[at + 6u] = bitcast<u32>(end);
    tables[at + 7u] = 0u;
}

// The last sequence that starts at `row` or before.
fn sequence_of_row(row: u32) -> u32 {
    var low = 0u;
    var high = params.sequences;
    while high - low > 1u {
        let middle = (low + high) / 2u;
        if cu_seqlens_q_at(middle) <= row { low = middle; } else { high = middle; }
    }
    return low;
}

@compute @workgroup_size(THREADS)
fn gather_kernel(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let id = params.workgroup_first + group.y * params.grid_width + group.x;
    if id >= params.workgroups { return; }
    let i = id * THREADS + lane;
    if i < params.sequences { write_sequence(i); }
    if PACKED && i < params.rows { tables[params.tables_base + params.rows_at + i] = sequence_of_row(i); }
    if SLOPES && i < params.slopes { tables[params.tables_base + params.slopes_at + i] = alibi_slopes_at(i); }
    if SINKS && i < params.sinks { tables[params.tables_base + params.sinks_at + i] = sinks_at(i); }
    if PAGES && i < params.pages {
        tables[params.tables_base + params.pages_at + i] = min(block_table_at(i), params.last_page);
    }
    if BLOCK_MASK && i < params.classes { tables[params.tables_base + params.classes_at + i] = block_mask_at(i); }
    if SEED && i < params.seed_words { tables[params.tables_base + params.seed_at + i] = seed_at(i); }
}
