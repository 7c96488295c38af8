// s[i, j] = <q_i, k_j>, raw: the second stage scales them.
// One workgroup owns BLOCK_M queries x BLOCK_N keys of one head. A tile that no row of it sees is not written,
// unless EVERY_TILE.
// Expects: HEAD_DIM, EVERY_TILE, q, k, scores, Params, k_head_at, k_at, block_begin, block_end, load_q4, load_k4, Invocation, product.
// Provides: scores_kernel.
var<private> q_first: u32;
var<private> kv_batch: u32;
var<private> k_first: u32;
var<private> scores_first: u32;

fn fetch_a4(m: u32, k: u32) -> vec4<f32> {
    if HEAD_DIM % CHUNK != 0u && k >= HEAD_DIM { return vec4<f32>(); }
    return load_q4(q_first + min(m, params.q_len - 1u) * params.q_row + k, HEAD_DIM - k);
}

fn fetch_b4(n: u32, k: u32) -> vec4<f32> {
    if HEAD_DIM % CHUNK != 0u && k >= HEAD_DIM { return vec4<f32>(); }
    return load_k4(k_at(k_first, kv_batch, min(n, params.kv_len - 1u), 0u, false) + k, HEAD_DIM - k);
}

fn start_part(part: u32) {}

fn emit(m: u32, n: u32, c: f32) {
    scores[scores_first + m * params.scores_row + n] = c;
}

@compute @workgroup_size(THREADS)
fn scores_kernel(invocation: Invocation) {
    let id = flat_id(invocation.group);
    if id >= params.workgroups { return; }
    let n_tiles = (params.kv_len + BLOCK_N - 1u) / BLOCK_N;
    let n_tile = id % n_tiles;
    let m_tile = id / n_tiles % params.tiles;
    let head = id / n_tiles / params.tiles % params.heads;
    let batch = id / n_tiles / params.tiles / params.heads;
    let m = m_tile * BLOCK_M;
    let n = n_tile * BLOCK_N;
    let last = min(m + BLOCK_M, params.q_len) - 1u;
    if !EVERY_TILE && (n + BLOCK_N <= block_begin(batch, m) || n >= block_end(batch, last)) { return; }
    q_first = params.q_base + batch * params.q_batch + head * params.q_head;
    kv_batch = batch;
    k_first = k_head_at(batch, kv_head_of(head));
    scores_first = params.scores_base + batch * params.scores_batch + head * params.scores_head + params.kv_first;
    product(invocation, m, n, params.q_len, params.kv_len, 0u, HEAD_DIM, 0u, HEAD_DIM, 1u);
}
