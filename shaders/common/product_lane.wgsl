// c[m, n] = sum over parts and k of a[m, k] * b[n, k], as software GPUs like it: an invocation owns the columns lane and
// lane + THREADS, and walks BLOCK_M rows whose a it shares with all others: a uniform address, loaded once.
// One workgroup owns BLOCK_M x BLOCK_N. No workgroup memory, no barrier.
// Where some a are 0 because the pair is excluded (outside of [plain_begin, plain_end) in k) and GUARD is set,
// such a pair adds nothing even if b is NaN.
// Expects: BLOCK_M, BLOCK_N, GUARD; fetch_a4(m, k), fetch_b4(n, k): 4 k from one row, 0 past the end; start_part(part), before those of a part;
// emit(m, n, c).
// Provides: THREADS, CHUNK, Invocation, product.
const CHUNK: u32 = 4u;                  // 8 run up to 7 % sooner, of twice the code; 16 later, of four times
const THREADS: u32 = BLOCK_N / 2u;
const_assert BLOCK_N % 2u == 0u;

struct Invocation {
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
}

fn dot_onto(a: vec4<f32>, b: vec4<f32>, c: f32) -> f32 {
    return fma(a.w, b.w, fma(a.z, b.z, fma(a.y, b.y, fma(a.x, b.x, c))));
}

fn guarded_onto(a: vec4<f32>, b: vec4<f32>, c: f32) -> f32 {
    return dot_onto(a, select(b, vec4<f32>(), a == vec4<f32>()), c);
}

fn product(invocation: Invocation, m_first: u32, n_first: u32, m_len: u32, n_len: u32,
           k_begin: u32, k_end: u32, plain_begin: u32, plain_end: u32, parts: u32) {
    let n0 = n_first + invocation.lane;
    let n1 = n0 + THREADS;
    var c0: array<f32, BLOCK_M>;
    var c1: array<f32, BLOCK_M>;
    for (var part = 0u; part < parts; part++) {
        start_part(part);
        for (var k = k_begin; k < k_end; k += CHUNK) {
            let b0 = fetch_b4(n0, k);
            let b1 = fetch_b4(n1, k);
            if GUARD && (k < plain_begin || k + CHUNK > plain_end) {
                for (var r = 0u; r < BLOCK_M; r++) {
                    let a = fetch_a4(m_first + r, k);
                    c0[r] = guarded_onto(a, b0, c0[r]);
                    c1[r] = guarded_onto(a, b1, c1[r]);
                }
            } else {
                for (var r = 0u; r < BLOCK_M; r++) {
                    let a = fetch_a4(m_first + r, k);
                    c0[r] = dot_onto(a, b0, c0[r]);
                    c1[r] = dot_onto(a, b1, c1[r]);
                }
            }
        }
    }
    for (var r = 0u; r < BLOCK_M; r++) {
        if m_first + r < m_len {
            if n0 < n_len { emit(m_first + r, n0, c0[r]); }
            if n1 < n_len { emit(m_first + r, n1, c1[r]); }
        }
    }
}
