// What is known of a sequence, 8 words each: first row of q, rows of q, first row of k, rows of k, diagonal, band's
// begin and end relative to a query's position.
// Expects: Params, Place, tables; sequence_of, of a row.
// Provides: seen: the range of rows of k that a row of q sees, the same for all rows past a sequence's end, where it
// is empty; within: the same by length alone; place_of; diagonal.
fn record(sequence: u32, field: u32) -> u32 {
    return tables[params.tables_base + params.sequences_at + sequence * 8u + field];
}

fn seen(batch: u32, row: u32) -> vec2<u32> {
    let sequence = sequence_of(batch, row);
    let q_len = record(sequence, 1u);
    let kv_start = record(sequence, 2u);
    let kv_len = i32(record(sequence, 3u));
    if q_len == 0u { return vec2<u32>(kv_start, kv_start); }
    let pos = row - record(sequence, 0u);
    let i = i32(min(pos, q_len - 1u));
    let end = clamp(i + bitcast<i32>(record(sequence, 6u)), 0, kv_len);
    let begin = clamp(i + bitcast<i32>(record(sequence, 5u)), 0, end);
    return vec2<u32>(kv_start + u32(select(begin, end, pos >= q_len)), kv_start + u32(end));
}

fn within(batch: u32, row: u32) -> vec2<u32> {
    let sequence = sequence_of(batch, row);
    let kv_start = record(sequence, 2u);
    let kv_len = select(0u, record(sequence, 3u), row - record(sequence, 0u) < record(sequence, 1u));
    return vec2<u32>(kv_start, kv_start + kv_len);
}

fn place_of(batch: u32, row: u32) -> Place {
    let sequence = sequence_of(batch, row);
    let pos = row - record(sequence, 0u);
    return Place(sequence, pos, record(sequence, 2u), pos < record(sequence, 1u));
}

fn diagonal(batch: u32) -> i32 { return bitcast<i32>(record(batch, 4u)); }
