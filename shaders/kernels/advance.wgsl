// Which sequences have a place for all of their new rows: their lengths grow by them, unless they count them already.
// Those that have not stay as they are, and their status says how many rows lack a place. What is taken is noted for the
// kernels that write the rows: where the first stands, and how many they are.
// One workgroup owns one sequence.
// Expects: THREADS, kv_lens, append_status, admitted; NEW_LENS, PAGES: what is given; new_lens_at, block_table_at;
// counted_rows, earlier_status, grow.
// Provides: Params, advance_kernel.
struct Params {
    grid_width: u32, workgroup_first: u32, workgroups: u32,
    new_len: u32, capacity: u32, pages: u32, page_len: u32, table_row: u32,
    kv_lens_base: u32, new_lens_base: u32, block_table_base: u32, append_status_base: u32, admitted_base: u32,
}

var<workgroup> without_page: atomic<u32>;

@compute @workgroup_size(THREADS)
fn advance_kernel(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let id = params.workgroup_first + group.y * params.grid_width + group.x;
    if id >= params.workgroups { return; }
    if lane == 0u { atomicStore(&without_page, 0u); }
    workgroupBarrier();
    let kv_len = kv_lens[params.kv_lens_base + id];
    var rows = params.new_len;
    if NEW_LENS { rows = min(rows, new_lens_at(id)); }
    let counted = counted_rows(rows);
    // Rows before position 0, of a length that cannot have counted them.
    let before = counted - min(counted, kv_len);
    let first = min(kv_len + before - counted, params.capacity);
    let placed = min(rows - before, params.capacity - first);
    let end = first + placed;
    if PAGES {
        let pages_end = (end + params.page_len - 1u) / params.page_len;
        for (var p = first / params.page_len + lane; p < pages_end; p += THREADS) {
            if block_table_at(id * params.table_row + p) >= params.pages {
                let begin = p * params.page_len;
                atomicAdd(&without_page, min(end, begin + params.page_len) - max(first, begin));
            }
        }
    }
    workgroupBarrier();
    if lane == 0u {
        let lacking = atomicLoad(&without_page) + rows - placed;
        let earlier = earlier_status(id);
        let status = select(lacking, earlier, earlier != 0u);
        let taken = select(0u, rows, status == 0u);
        append_status[params.append_status_base + id] = status;
        admitted[params.admitted_base + 2u * id] = first;
        admitted[params.admitted_base + 2u * id + 1u] = taken;
        grow(id, kv_len + taken);
    }
}
