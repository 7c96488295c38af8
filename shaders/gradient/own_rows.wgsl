// A workgroup owns query rows and walks keys.
// Expects: Params, kv_head_of, k_head_at, v_head_at, k_at, v_at, block_begin, block_end, load_q4, load_k4, load_v4, load_d_out4.
// Provides: owners, own_len, of which own1_at, own2_at, load_own14, load_own24; what is walked: walk1_at, walk2_at, load_walk14,
// load_walk24; pair_of, heads_of, walk_range, whole_range.
fn owners() -> u32 { return params.heads; }
fn own_len() -> u32 { return params.q_len; }
fn own1_at(batch: u32, head: u32, i: u32) -> u32 {
    return params.q_base + batch * params.q_batch + head * params.q_head + min(i, params.q_len - 1u) * params.q_row;
}
fn own2_at(batch: u32, head: u32, i: u32) -> u32 {
    return params.d_out_base + batch * params.d_out_batch + head * params.d_out_head
         + min(i, params.q_len - 1u) * params.d_out_row;
}
fn walk1_at(batch: u32, head: u32, i: u32) -> u32 {
    return k_at(k_head_at(batch, kv_head_of(head)), batch, min(i, params.kv_len - 1u), 0u, false);
}
fn walk2_at(batch: u32, head: u32, i: u32) -> u32 {
    return v_at(v_head_at(batch, kv_head_of(head)), batch, min(i, params.kv_len - 1u), 0u, false);
}
fn load_own14(i: u32, width: u32) -> vec4<f32> { return load_q4(i, width); }
fn load_own24(i: u32, width: u32) -> vec4<f32> { return load_d_out4(i, width); }
fn load_walk14(i: u32, width: u32) -> vec4<f32> { return load_k4(i, width); }
fn load_walk24(i: u32, width: u32) -> vec4<f32> { return load_v4(i, width); }

// The row and the key.
fn pair_of(own: u32, walked: u32) -> vec2<u32> { return vec2<u32>(own, walked); }

// Heads that the owner of `head` walks: from here to before there.
fn heads_of(head: u32) -> vec2<u32> { return vec2<u32>(head, head + 1u); }

// Keys that some row sees, and those that all see.
fn walk_range(batch: u32, first: u32, last: u32) -> vec2<u32> {
    return vec2<u32>(block_begin(batch, first), block_end(batch, last));
}
fn whole_range(batch: u32, first: u32, last: u32) -> vec2<u32> {
    return vec2<u32>(block_begin(batch, last), block_end(batch, first));
}
