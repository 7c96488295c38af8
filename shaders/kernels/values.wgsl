// o_i = sum over j of p[i, j] * keep[i, j] / (1 - p_drop) * v_j (+ o_i, where the keys come in ranges).
// One workgroup owns BLOCK_M rows x BLOCK_N columns of one head, and walks the keys that some row of it sees.
// Expects: V_HEAD_DIM, PAIRS, Params, v_head_at, v_at, block_begin, block_end, place_of, read_seed, keeps4, keep_scale, load_scores4,
// load_v, put_out, product.
// Provides: values_kernel.
var<private> kv_batch: u32;
var<private> q_head: u32;
var<private> v_first: u32;
var<private> out_first: u32;
var<private> scores_first: u32;

fn fetch_a4(m: u32, k: u32) -> vec4<f32> {
    if k >= params.kv_len { return vec4<f32>(); }
    let row = min(m, params.q_len - 1u);
    let place = place_of(params.batch_first + kv_batch, params.q_first + row);
    let keeps = keeps4(place, kv_batch, q_head, row, k);
    return select(vec4<f32>(), load_scores4(scores_first + row * params.scores_row + k, params.kv_len - k), keeps);
}

fn fetch_b4(n: u32, k: u32) -> vec4<f32> {
    let column = v_first + min(n, V_HEAD_DIM - 1u);
    let last = params.kv_len - 1u;
    return vec4<f32>(load_v(v_at(column, kv_batch, min(k, last), 0u, false)),
                     load_v(v_at(column, kv_batch, min(k + 1u, last), 0u, false)),
                     load_v(v_at(column, kv_batch, min(k + 2u, last), 0u, false)),
                     load_v(v_at(column, kv_batch, min(k + 3u, last), 0u, false)));
}

fn start_part(part: u32) {}

fn emit(m: u32, n: u32, c: f32) { put_out(out_first + m * params.out_row + n, c * keep_scale()); }

@compute @workgroup_size(THREADS)
fn values_kernel(invocation: Invocation) {
    let id = flat_id(invocation.group);
    if id >= params.workgroups { return; }
    read_seed();
    let n_tiles = (V_HEAD_DIM + BLOCK_N - 1u) / BLOCK_N;
    let n = id % n_tiles * BLOCK_N;
    let m = id / n_tiles % params.tiles * BLOCK_M;
    let head = id / n_tiles / params.tiles % params.heads;
    let batch = id / n_tiles / params.tiles / params.heads;
    let last = min(m + BLOCK_M, params.q_len) - 1u;
    kv_batch = batch;
    q_head = head;
    v_first = v_head_at(batch, kv_head_of(head));
    out_first = params.out_base + batch * params.out_batch + head * params.out_head;
    scores_first = params.scores_base + batch * params.scores_batch + head * params.scores_head + params.kv_first;
    product(invocation, m, n, params.q_len, V_HEAD_DIM,
            block_begin(batch, m) / CHUNK * CHUNK, block_end(batch, last),
            select(block_begin(batch, last), 0u, PAIRS), select(block_end(batch, m), 0u, PAIRS), 1u);
}
