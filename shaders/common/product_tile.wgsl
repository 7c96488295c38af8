// c[m, n] = sum over parts and k of a[m, k] * b[n, k], as hardware likes it: a tile of BLOCK_M x BLOCK_N in registers,
// TILE_M x 4 an invocation, chunks of 16 k in workgroup memory, rows padded against bank conflicts.
// One workgroup owns one tile. Where some a are 0 because the pair is excluded (outside of [plain_begin,
// plain_end) in k) and GUARD is set, such a pair adds nothing even if b is NaN.
// A_ALONG_M, B_ALONG_N: a is contiguous along m, b along n, so that neighbouring invocations fetch neighbours there.
// Expects: BLOCK_M, BLOCK_N, TILE_M, GUARD, A_ALONG_M, B_ALONG_N; fetch_a4(m, k), fetch_b4(n, k): 4 k from one row, 0 past the end;
// start_part(part), before those of a part; emit(m, n, c).
// Provides: THREADS, CHUNK, Invocation, product.
const CHUNK: u32 = 16u;
const CHUNK4: u32 = CHUNK / 4u;
const PITCH: u32 = CHUNK4 + 1u;
const TILE_X: u32 = BLOCK_N / 4u;
const TILE_Y: u32 = BLOCK_M / TILE_M;
const THREADS: u32 = TILE_X * TILE_Y;
const_assert BLOCK_N % 4u == 0u && BLOCK_M % TILE_M == 0u;

struct Invocation {
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
}

var<workgroup> a_tile: array<vec4<f32>, BLOCK_M * PITCH>;
var<workgroup> b_tile: array<vec4<f32>, BLOCK_N * PITCH>;

fn dot_onto(a: vec4<f32>, b: vec4<f32>, c: f32) -> f32 {
    return fma(a.w, b.w, fma(a.z, b.z, fma(a.y, b.y, fma(a.x, b.x, c))));
}

fn guarded_onto(a: vec4<f32>, b: vec4<f32>, c: f32) -> f32 {
    return dot_onto(a, select(b, vec4<f32>(), a == vec4<f32>()), c);
}

fn product(invocation: Invocation, m_first: u32, n_first: u32, m_len: u32, n_len: u32,
           k_begin: u32, k_end: u32, plain_begin: u32, plain_end: u32, parts: u32) {
    let lane = invocation.lane;
    let x = lane % TILE_X;
    let y = lane / TILE_X;
    var c: array<vec4<f32>, TILE_M>;
    for (var part = 0u; part < parts; part++) {
        start_part(part);
        for (var k = k_begin; k < k_end; k += CHUNK) {
            workgroupBarrier();
            for (var i = lane; i < BLOCK_M * CHUNK4; i += THREADS) {
                let m = select(i / CHUNK4, i % BLOCK_M, A_ALONG_M);
                let k4 = select(i % CHUNK4, i / BLOCK_M, A_ALONG_M);
                a_tile[m * PITCH + k4] = fetch_a4(m_first + m, k + k4 * 4u);
            }
            for (var i = lane; i < BLOCK_N * CHUNK4; i += THREADS) {
                let n = select(i / CHUNK4, i % BLOCK_N, B_ALONG_N);
                let k4 = select(i % CHUNK4, i / BLOCK_N, B_ALONG_N);
                b_tile[n * PITCH + k4] = fetch_b4(n_first + n, k + k4 * 4u);
            }
            workgroupBarrier();
            if GUARD && (k < plain_begin || k + CHUNK > plain_end) {
                for (var i = 0u; i < CHUNK4; i++) {
                    let b0 = b_tile[x * PITCH + i];
                    let b1 = b_tile[(x + TILE_X) * PITCH + i];
                    let b2 = b_tile[(x + 2u * TILE_X) * PITCH + i];
                    let b3 = b_tile[(x + 3u * TILE_X) * PITCH + i];
                    for (var r = 0u; r < TILE_M; r++) {
                        let a = a_tile[(y * TILE_M + r) * PITCH + i];
                        c[r] = vec4<f32>(guarded_onto(a, b0, c[r].x), guarded_onto(a, b1, c[r].y),
                                         guarded_onto(a, b2, c[r].z), guarded_onto(a, b3, c[r].w));
                    }
                }
            } else {
                for (var i = 0u; i < CHUNK4; i++) {
                    let b0 = b_tile[x * PITCH + i];
                    let b1 = b_tile[(x + TILE_X) * PITCH + i];
                    let b2 = b_tile[(x + 2u * TILE_X) * PITCH + i];
                    let b3 = b_tile[(x + 3u * TILE_X) * PITCH + i];
                    for (var r = 0u; r < TILE_M; r++) {
                        let a = a_tile[(y * TILE_M + r) * PITCH + i];
                        c[r] = vec4<f32>(dot_onto(a, b0, c[r].x), dot_onto(a, b1, c[r].y),
                                         dot_onto(a, b2, c[r].z), dot_onto(a, b3, c[r].w));
                    }
                }
            }
        }
    }
    for (var r = 0u; r < TILE_M; r++) {
        let m = m_first + y * TILE_M + r;
        if m < m_len {
            if n_first + x < n_len { emit(m, n_first + x, c[r].x); }
            if n_first + x + TILE_X < n_len { emit(m, n_first + x + TILE_X, c[r].y); }
            if n_first + x + 2u * TILE_X < n_len { emit(m, n_first + x + 2u * TILE_X, c[r].z); }
            if n_first + x + 3u * TILE_X < n_len { emit(m, n_first + x + 3u * TILE_X, c[r].w); }
        }
    }
}
