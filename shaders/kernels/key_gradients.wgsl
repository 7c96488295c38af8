// d_j = sum over the heads of a group and their rows i of w[i, j] * x_i (+ d_j, where rows come in parts): of weights and
// d_out the gradient of v, of the gradients of scores and q that of k.
// One workgroup owns BLOCK_M keys x BLOCK_N columns of one K/V head, and walks the rows that see some key of it, one head
// after the other.
// Expects: X_DIM, PAIRS, scores, Params, block_begin, block_end, first_ending_after, first_beginning_at, load_x, put_out, Invocation, product.
// Provides: key_gradients_kernel.
var<private> scores_first: u32;
var<private> x_first: u32;
var<private> out_first: u32;
var<private> head_first: u32;
var<private> of_batch: u32;

fn start_part(part: u32) {
    let head = head_first + part;
    scores_first = params.scores_base + of_batch * params.scores_batch + head * params.scores_head + params.kv_first;
    x_first = params.x_base + of_batch * params.x_batch + head * params.x_head;
}

fn fetch_a4(m: u32, k: u32) -> vec4<f32> {
    let column = scores_first + min(m, params.kv_len - 1u);
    let last = params.q_len - 1u;
    let w = vec4<f32>(scores[column + min(k, last) * params.scores_row],
                      scores[column + min(k + 1u, last) * params.scores_row],
                      scores[column + min(k + 2u, last) * params.scores_row],
                      scores[column + min(k + 3u, last) * params.scores_row]);
    return select(vec4<f32>(), w, vec4<u32>(k) + vec4<u32>(0u, 1u, 2u, 3u) <= vec4<u32>(last));
}

fn fetch_b4(n: u32, k: u32) -> vec4<f32> {
    let column = x_first + min(n, X_DIM - 1u);
    let last = params.q_len - 1u;
    return vec4<f32>(load_x(column + min(k, last) * params.x_row), load_x(column + min(k + 1u, last) * params.x_row),
                     load_x(column + min(k + 2u, last) * params.x_row), load_x(column + min(k + 3u, last) * params.x_row));
}

fn emit(m: u32, n: u32, c: f32) { put_out(out_first + m * params.out_row + n, c); }

@compute @workgroup_size(THREADS)
fn key_gradients_kernel(invocation: Invocation) {
    let id = flat_id(invocation.group);
    if id >= params.workgroups { return; }
    let n_tiles = (X_DIM + BLOCK_N - 1u) / BLOCK_N;
    let n = id % n_tiles * BLOCK_N;
    let m = id / n_tiles % params.tiles * BLOCK_M;
    let kv_head = id / n_tiles / params.tiles % params.kv_heads;
    let batch = id / n_tiles / params.tiles / params.kv_heads;
    // The heads of the block that share these keys.
    let group_first = (params.head_first / params.group_size + kv_head) * params.group_size;
    head_first = max(group_first, params.head_first) - params.head_first;
    let heads = min(group_first + params.group_size - params.head_first, params.heads) - head_first;
    of_batch = batch;
    out_first = params.out_base + batch * params.out_batch + kv_head * params.out_head;
    let last = min(m + BLOCK_M, params.kv_len) - 1u;
    let plain_begin = first_ending_after(batch, last);          // rows from here on see the last key ...
    let plain_end = first_beginning_at(batch, m + 1u);          // ... and up to here the first
    product(invocation, m, n, params.kv_len, X_DIM,
            first_ending_after(batch, m) / CHUNK * CHUNK, first_beginning_at(batch, last + 1u),
            select(plain_begin, 0u, PAIRS), select(plain_end, 0u, PAIRS), heads);
}
