// c[m, n] = sum over parts and k of a[m, k] * b[n, k] on matrix units: products of f16 fragments, sums in f32.
// One workgroup owns 4 x 4 fragments, of which a subgroup owns 2 x 2; where there are fewer than 4 subgroups, quarters
// take turns. Chunks of 32 k pass through workgroup memory, and c on its way out, half of the columns at a time.
// a is taken A_SCALE times: weights are 1 at most, and small ones keep their digits in f16.
// Where some a are 0 because the pair is excluded (outside of [plain_begin, plain_end) in k) and GUARD is set, such a
// pair adds nothing even if b is NaN: there, what is no finite f16 is 0.
// SPLIT: an input is the sum of two f16, of which the second holds 2^11 times the rest; of the four products the three
// large ones are added up.
// Expects: SIZE, BLOCK_M, BLOCK_N, THREADS, GUARD, SPLIT, A_ALONG_M, B_ALONG_N, A_SCALE, FragmentA, FragmentB, FragmentC,
// finite_half, high_half, nearest_half;
// fetch_a4(m, k), fetch_b4(n, k): 4 k from one row, 0 past the end; start_part(part), before those of a
// part; emit(m, n, c).
// Provides: CHUNK, Invocation, product.
const CHUNK: u32 = 32u;
const CHUNK4: u32 = CHUNK / 4u;
const PITCH: u32 = CHUNK + 8u;
const HALF: u32 = 2u * SIZE;
const C_PITCH: u32 = HALF + 4u;
const PARTS: u32 = select(1u, 2u, SPLIT);
const K_FRAGMENTS: u32 = CHUNK / SIZE;
const REST: f32 = 2048.0;
const_assert BLOCK_M == 4u * SIZE && BLOCK_N == 4u * SIZE;

struct Invocation {
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
    @builtin(subgroup_id) subgroup: u32,
    @builtin(num_subgroups) subgroups: u32,
}

var<workgroup> a_tile: array<f16, PARTS * BLOCK_M * PITCH>;
var<workgroup> b_tile: array<f16, PARTS * BLOCK_N * PITCH>;
var<workgroup> c_tile: array<f32, BLOCK_M * C_PITCH>;

fn put_a4(at: u32, x: vec4<f32>) {
    let first = select(nearest_half(x), high_half(x), vec4<bool>(SPLIT));
    let high = vec4<f16>(first);
    a_tile[at] = high.x;
    a_tile[at + 1u] = high.y;
    a_tile[at + 2u] = high.z;
    a_tile[at + 3u] = high.w;
    if SPLIT {
        let low = vec4<f16>((x - first) * REST);
        let to = at + BLOCK_M * PITCH;
        a_tile[to] = low.x;
        a_tile[to + 1u] = low.y;
        a_tile[to + 2u] = low.z;
        a_tile[to + 3u] = low.w;
    }
}

fn put_b4(at: u32, x: vec4<f32>) {
    let first = select(x, high_half(x), vec4<bool>(SPLIT));
    let high = vec4<f16>(first);
    b_tile[at] = high.x;
    b_tile[at + 1u] = high.y;
    b_tile[at + 2u] = high.z;
    b_tile[at + 3u] = high.w;
    if SPLIT {
        let low = vec4<f16>((x - first) * REST);
        let to = at + BLOCK_N * PITCH;
        b_tile[to] = low.x;
        b_tile[to + 1u] = low.y;
        b_tile[to + 2u] = low.z;
        b_tile[to + 3u] = low.w;
    }
}

fn product(invocation: Invocation, m_first: u32, n_first: u32, m_len: u32, n_len: u32,
           k_begin: u32, k_end: u32, plain_begin: u32, plain_end: u32, parts: u32) {
    for (var turn = 0u; turn < 4u; turn += invocation.subgroups) {
        let quarter = turn + invocation.subgroup;
        let works = quarter < 4u;
        let a_from = quarter / 2u * HALF * PITCH;
        let b_from = quarter % 2u * HALF * PITCH;
        var c: array<FragmentC, 4>;
        var small: array<FragmentC, 4>;
        for (var part = 0u; part < parts; part++) {
            start_part(part);
            for (var k = k_begin; k < k_end; k += CHUNK) {
                workgroupBarrier();
                for (var i = invocation.lane; i < BLOCK_M * CHUNK4; i += THREADS) {
                    let m = select(i / CHUNK4, i % BLOCK_M, A_ALONG_M);
                    let k4 = select(i % CHUNK4, i / BLOCK_M, A_ALONG_M);
                    put_a4(m * PITCH + k4 * 4u, A_SCALE * fetch_a4(m_first + m, k + k4 * 4u));
                }
                let edge = GUARD && (k < plain_begin || k + CHUNK > plain_end);
                for (var i = invocation.lane; i < BLOCK_N * CHUNK4; i += THREADS) {
                    let n = select(i / CHUNK4, i % BLOCK_N, B_ALONG_N);
                    let k4 = select(i % CHUNK4, i / BLOCK_N, B_ALONG_N);
                    var x = fetch_b4(n_first + n, k + k4 * 4u);
                    if edge { x = finite_half(x); }
                    put_b4(n * PITCH + k4 * 4u, x);
                }
                workgroupBarrier();
                if works {
                    for (var d = 0u; d < K_FRAGMENTS; d++) {
                        let a0 = coopLoadT<FragmentA>(&a_tile[a_from + d * SIZE], PITCH);
                        let a1 = coopLoadT<FragmentA>(&a_tile[a_from + SIZE * PITCH + d * SIZE], PITCH);
                        let b0 = coopLoad<FragmentB>(&b_tile[b_from + d * SIZE], PITCH);
                        let b1 = coopLoad<FragmentB>(&b_tile[b_from + SIZE * PITCH + d * SIZE], PITCH);
                        c[0] = coopMultiplyAdd(a0, b0, c[0]);
                        c[1] = coopMultiplyAdd(a0, b1, c[1]);
                        c[2] = coopMultiplyAdd(a1, b0, c[2]);
                        c[3] = coopMultiplyAdd(a1, b1, c[3]);
                        if SPLIT {
                            const A_LOW = (PARTS - 1u) * BLOCK_M * PITCH;
                            const B_LOW = (PARTS - 1u) * BLOCK_N * PITCH;
                            let low0 = coopLoadT<FragmentA>(&a_tile[A_LOW + a_from + d * SIZE], PITCH);
                            let low1 = coopLoadT<FragmentA>(&a_tile[A_LOW + a_from + SIZE * PITCH + d * SIZE], PITCH);
                            small[0] = coopMultiplyAdd(low0, b0, small[0]);
                            small[1] = coopMultiplyAdd(low0, b1, small[1]);
                            small[2] = coopMultiplyAdd(low1, b0, small[2]);
                            small[3] = coopMultiplyAdd(low1, b1, small[3]);
                            let rest0 = coopLoad<FragmentB>(&b_tile[B_LOW + b_from + d * SIZE], PITCH);
                            let rest1 = coopLoad<FragmentB>(&b_tile[B_LOW + b_from + SIZE * PITCH + d * SIZE], PITCH);
                            small[0] = coopMultiplyAdd(a0, rest0, small[0]);
                            small[1] = coopMultiplyAdd(a0, rest1, small[1]);
                            small[2] = coopMultiplyAdd(a1, rest0, small[2]);
                            small[3] = coopMultiplyAdd(a1, rest1, small[3]);
                        }
                    }
                }
            }
        }
        if SPLIT {
            c[0] = c[0] + small[0] * (1.0 / REST);
            c[1] = c[1] + small[1] * (1.0 / REST);
            c[2] = c[2] + small[2] * (1.0 / REST);
            c[3] = c[3] + small[3] * (1.0 / REST);
        }
        for (var side = 0u; side < 2u; side++) {
            workgroupBarrier();
            if works && quarter % 2u == side {
                let to = quarter / 2u * HALF * C_PITCH;
                coopStoreT(c[0], &c_tile[to], C_PITCH);
                coopStoreT(c[1], &c_tile[to + SIZE], C_PITCH);
                coopStoreT(c[2], &c_tile[to + SIZE * C_PITCH], C_PITCH);
                coopStoreT(c[3], &c_tile[to + SIZE * C_PITCH + SIZE], C_PITCH);
            }
            workgroupBarrier();
            for (var i = invocation.lane; i < BLOCK_M * HALF; i += THREADS) {
                let owner = i / HALF / HALF * 2u + side;
                let m = m_first + i / HALF;
                let n = n_first + side * HALF + i % HALF;
                if owner >= turn && owner - turn < invocation.subgroups && m < m_len && n < n_len {
                    emit(m, n, c_tile[i / HALF * C_PITCH + i % HALF] * (1.0 / A_SCALE));
                }
            }
        }
    }
}
